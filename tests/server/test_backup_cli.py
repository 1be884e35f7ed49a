"""`daybook backup` and `restore` as an operator meets them, beside a busy service; and the messages when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger import limits
from ledger.backup import MANIFEST, BackUp, utc_text
from ledger.journal import scan
from ledger.verify import parse_head, verify
from tests import till
from tests.ledger.test_verify import small_forge
from tests.running import RunningServer
from tests.server.test_cli import daybook, one_message

NewServer = Callable[..., RunningServer]
TAIL = ("--tail-bytes", str(limits.TAIL_BYTES_MIN))


def head_of(output: str) -> tuple[int, bytes]:
    return parse_head(re.search(r"head (\d+:[0-9a-f]{64})", output)[1])


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_help_teaches_with_an_example(command: str) -> None:
    done = daybook(command, "--help")
    assert done.returncode == 0 and f"Example: daybook {command}" in done.stdout
    assert "--tail-bytes" not in done.stdout, "switches of tests are hidden"
    assert "key" in done.stdout, "that the key is kept apart is said where it is needed"


def test_back_ups_of_a_busy_service_bring_back_what_was_answered(new_server: NewServer, tmp_path: Path) -> None:
    """Every run adds to one back-up while tills call; the restored ledger holds every answer up to the back-up's head."""
    server = new_server().start()
    stop = threading.Event()
    copy, answers = tmp_path / "copy", []

    def shop(card: str) -> None:
        while not stop.is_set():
            entry = server.stub.EarnPoints(till.earn(card, 100), timeout=60).entry
            answers.append((entry.sequence, card))

    heads = []
    with ThreadPoolExecutor(4) as pool:
        tills = [pool.submit(shop, f"card-{number}") for number in range(4)]
        try:
            while len(set(heads)) < 3 and not any(one.done() for one in tills):
                done = daybook("backup", str(server.data), "--to", str(copy), "--rate", "0")
                assert done.returncode == 0, done.stderr
                assert "NOT in the back-up" in done.stdout
                heads.append(head_of(done.stdout))
        finally:
            stop.set()
        for one in tills:
            one.result()
    assert heads == sorted(heads) and len(set(heads)) == 3
    shutil.copy(server.data / "identity.key", tmp_path / "key")
    server.kill()
    last = daybook("backup", str(server.data), "--to", str(copy))
    assert "groups that were not in LMDB yet" in last.stdout
    whole = verify(server.data)
    assert head_of(last.stdout) == parse_head(whole.head), "of a stopped directory everything is copied"
    for head in heads:
        assert verify(copy, expect=head).head == whole.head
    done = daybook("verify", str(copy), "--key", str(tmp_path / "key"), "--expect-head", f"{heads[0][0]}:{heads[0][1].hex()}")
    assert done.returncode == 0 and "the journal is sound" in done.stdout

    done = daybook("restore", str(copy), "--to", str(tmp_path / "new" / "data"), "--key", str(tmp_path / "key"), *TAIL)
    assert done.returncode == 0, done.stderr
    again = new_server(directory=tmp_path / "new").start()
    for number in range(4):
        card = f"card-{number}"
        posted = again.stub.GetBalance(till.balance_of(card), timeout=60).wallets[0].posted_points
        assert posted == 5 * sum(owner == card for _, owner in answers)
    again.terminate()
    verify(again.data, expect=heads[-1])


def test_a_restore_to_a_moment_says_what_it_did_and_how_to_check_it(new_server: NewServer, tmp_path: Path) -> None:
    start = 1_790_000_000_000_000
    server = new_server(clock=start).start()
    for minute in range(5):
        server.set_clock(start + minute * 60_000_000)
        server.stub.EarnPoints(till.earn("card", 100, at=start + minute * 60_000_000), timeout=60)
    server.terminate()
    copy, key = tmp_path / "copy", server.data / "identity.key"
    assert daybook("backup", str(server.data), "--to", str(copy)).returncode == 0
    until = utc_text(start + 2 * 60_000_000 + 30_000_000)
    done = daybook("restore", str(copy), "--to", str(tmp_path / "new"), "--key", str(key), "--until", until, *TAIL)
    assert done.returncode == 0 and "left out" in done.stdout and "epoch 2" in done.stdout
    report = verify(tmp_path / "new", expect=head_of(done.stdout))
    assert report.totals["kinds"][1] == 3
    command = re.search(r"daybook (verify .* --expect-head \S+)", done.stdout)[1].split()
    assert daybook(*command).returncode == 0
    last = list(scan(server.data))[-1]
    one_message(daybook("verify", str(tmp_path / "new"), "--expect-head", f"{last.last_sequence}:{last.hash.hex()}"), 1,
                "rolled back|another history")


def test_wrong_uses_are_one_clear_message(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    assert daybook("backup", str(data), "--to", str(tmp_path / "copy")).returncode == 0
    key = tmp_path / "key"
    key.write_text("11" * 16)
    key.chmod(0o600)
    copy, new = str(tmp_path / "copy"), str(tmp_path / "new")
    for arguments, code, message in (
        (["backup", str(data), "--to", str(data)], 2, "is not empty and no back-up"),
        (["restore", copy, "--to", new, "--key", str(key)], 2, "the key is not the one that this journal was begun with"),
        (["restore", copy, "--to", new, "--key", str(key), "--until", "2026-01-01"], 2, "does not say its zone"),
        (["restore", copy, "--to", new, "--key", str(key), "--until", "2026-01-01T00:00Z", "--until-sequence", "3"], 2, "give one of them"),
        (["verify", copy, "--key", str(key)], 1, "another identity key"),
    ):
        one_message(daybook(*arguments), code, message)


def test_a_damaged_back_up_or_journal_is_exit_code_1_and_names_the_place(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    copy = tmp_path / "copy"
    assert daybook("backup", str(data), "--to", str(copy)).returncode == 0
    file = copy / BackUp(copy).files[0].name
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    one_message(daybook("verify", str(copy)), 1, rf"verification FAILED: .*{file.name}, group 8: the group's hash")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["entries"] = 7
    (copy / MANIFEST).write_text(json.dumps(manifest))
    one_message(daybook("backup", str(data), "--to", str(copy)), 1, r"back-up FAILED: .*MANIFEST.json: its checksum does not fit")
    journal = bytearray((data / "journal" / "data.mdb").read_bytes())
    at = journal.rindex(b"dairy")
    journal[at] ^= 1
    while (at := journal.rfind(b"dairy", 0, at)) > 0:
        journal[at] ^= 1
    (data / "journal" / "data.mdb").write_bytes(journal)
    one_message(daybook("backup", str(data), "--to", str(tmp_path / "other")), 1,
                r"back-up FAILED: .*data.mdb, group \d: the hash of group")
