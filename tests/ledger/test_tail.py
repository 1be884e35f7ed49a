"""The tail's bytes against the second reader, and the ring: turning over, filling up, going on after a start."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from ledger import limits
from tests.ledger import tail_reader

DIGEST_ENTRY_BYTES = 40 + 4 + 16


def test_block_0_says_what_the_format_says(tmp_path: Path, small_ledger) -> None:
    ledger = small_ledger()
    block = (tmp_path / "data" / "tail").read_bytes()[:4096]
    magic, version, block_bytes, size, directory = struct.unpack_from("<8sIIQ16s", block)
    assert (magic, version, block_bytes, size) == (b"DAYTAIL1", 1, 4096, limits.TAIL_BYTES_MIN)
    assert directory.hex() == ledger.directory
    assert (tmp_path / "data" / "FORMAT").read_text() == f"daybook 1\n{ledger.directory}\n"
    assert block[40:4064] == bytes(4024)
    assert hashlib.sha256(block[:4064]).digest() == block[4064:]


def test_groups_lie_in_blocks_of_their_own_and_chain(tmp_path: Path, small_ledger) -> None:
    ledger = small_ledger()
    for entries in (1, 7, 200):
        ledger.handle.turn(entries, True)
    groups = tail_reader.groups(tmp_path / "data" / "tail")
    assert [group.count for group in groups] == [1, 1, 7, 200]  # the first is the programme
    position, previous, sequence = 0, bytes(32), 1
    for group in groups:
        assert (group.position, group.previous_hash, group.first_sequence) == (position, previous, sequence)
        assert group.directory.hex() == ledger.directory
        position, previous, sequence = position + group.span, group.hash, sequence + group.count
    assert ledger.handle.head == (209, groups[-1].hash.hex())
    assert {len(entry) for group in groups[1:] for entry in group.entries} == {DIGEST_ENTRY_BYTES}
    raw = tail_reader.ring(tmp_path / "data" / "tail")
    for group in groups:
        end = group.position + 128 + group.size
        assert raw[end : group.position + group.span] == bytes(group.span - 128 - group.size), "padding is zeros"


def test_ring_turns_over_and_every_start_goes_on(tmp_path: Path, small_ledger) -> None:
    """Groups of very different sizes, so that they meet the ring's end in many ways; a start after each drain."""
    sizes = [1, 16_000, 3, 9_000, 16_000, 16_000, 1, 16_000, 12_345, 16_000, 16_000, 2, 16_000, 16_000, 16_000, 8_000]
    ledger = small_ledger()
    starts = 0
    for turn in range(3):
        for number, entries in enumerate(sizes):
            if ledger.handle.stats()["tail_used_bytes"] > 8 << 20:
                assert ledger.handle.finish(False) == 0
            before = ledger.handle.sequence
            assert ledger.handle.turn(entries, True) == before + entries
            if number % 5 == turn:
                sequence, digest, head = ledger.handle.sequence, ledger.handle.digest(), ledger.handle.head
                undrained = sequence - ledger.handle.drained_sequence
                ledger.close()
                ledger = small_ledger()
                starts += 1
                assert (ledger.handle.sequence, ledger.handle.digest(), ledger.handle.head) == (sequence, digest, head)
                assert ledger.recovered.sequence - ledger.recovered.journal_sequence == undrained
    assert starts == 10
    written = ledger.handle.sequence * DIGEST_ENTRY_BYTES
    assert written > 1.5 * limits.TAIL_BYTES_MIN, "the ring must have turned for this test to mean anything"
    assert ledger.handle.finish(True) == 0


def test_full_ring_gives_no_room_until_it_is_drained(small_ledger) -> None:
    ledger = small_ledger()
    last = 0
    while (now := ledger.handle.turn(16_000, True)) != last:
        last = now
    used = ledger.handle.stats()["tail_used_bytes"]
    assert limits.TAIL_BYTES_MIN - 2 * limits.GROUP_BYTES_MAX < used < limits.TAIL_BYTES_MIN
    assert ledger.handle.turn(1, True) == last, "no entry without room"
    assert ledger.handle.finish(False) == 0
    assert ledger.handle.turn(16_000, True) == last + 16_000
    sequence, digest = ledger.handle.sequence, ledger.handle.digest()
    ledger.close()
    ledger = small_ledger()
    assert (ledger.handle.sequence, ledger.handle.digest()) == (sequence, digest)


def test_threads_flush_and_drain_what_turns_write(small_ledger) -> None:
    ledger = small_ledger()
    ledger.start()
    for number in range(300):
        ledger.handle.turn(3, number % 3 == 0)
        while ledger.handle.durable_sequence < ledger.handle.sequence:
            ledger.handle.turn(0, False)
    stats = ledger.handle.stats()
    assert stats["durable_sequence"] == ledger.handle.sequence == 901
    assert sum(stats["flush_us"]["counts"]) == stats["groups"] >= 300
    assert sum(stats["group_entries"]["counts"]) == stats["groups"]
    assert stats["group_entries"]["sum"] == 901
    while ledger.handle.drained_sequence < 901:
        pass
    assert ledger.handle.stats()["drain_lag_entries"] == 0
    ledger.handle.turn(2, False)
    assert ledger.stop() == 0
    ledger = small_ledger()
    assert ledger.recovered == (False, 903, 903, 0, 0), "the last entry was a digest already, so stop adds none"


def test_tail_may_lie_in_another_directory(tmp_path: Path, small_ledger) -> None:
    (tmp_path / "fast").mkdir()
    ledger = small_ledger(tail=tmp_path / "fast")
    ledger.handle.turn(5, True)
    ledger.close()
    assert not (tmp_path / "data" / "tail").exists()
    assert small_ledger(tail=tmp_path / "fast").recovered.tail_groups == 2
