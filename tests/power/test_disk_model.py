"""The model of the disk by hand: small logs whose states can be counted."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.power.disk import FLUSH, FLUSH_NAMES, NAME, ROOT, WRITE, Disk, Op, State, Window

A, B, C = b"a" * 512, b"b" * 512, b"c" * 512


def write(begin: int, offset: int, data: bytes, *, end: int | None = None, dsync: bool = False) -> Op:
    return Op(begin, begin + 1 if end is None else end, WRITE, 1, offset, data, dsync, label=f"write {begin}")


def flush(begin: int) -> Op:
    return Op(begin, begin + 1, FLUSH, 1)


def contents(window: Window, drawn: int = 0) -> set[bytes]:
    """What file 1 may hold."""
    return {content(window, state) for state in window.states(random.Random(1), drawn)}


def content(window: Window, state: State) -> bytes:
    file = window.disk.files[1]
    found = bytearray(bytes(file.content).ljust(dict(state.sizes).get(1, file.size), b"\0"))
    for _, sector, piece in state.sectors:
        found[sector * 512 : sector * 512 + 512] = piece[: len(found) - sector * 512]
    return bytes(found)


def windows(ops: Iterable[Op], before: bytes = A + A + A) -> list[set[bytes]]:
    return [contents(window) for window in Disk({(ROOT, "f"): 1}, {1: before}).walk(ops)]


def test_a_write_in_the_air_may_be_torn_anywhere() -> None:
    states = {A + A + A, B + A + A, A + B + A, B + B + A}
    assert windows([write(1, 0, B + B)]) == [states]
    assert windows([write(1, 0, B + B, end=0)]) == [states], "also when it never returned"


def test_a_finished_flush_settles_what_came_before_it_and_nothing_else() -> None:
    before, after = windows([write(1, 0, B), flush(3), write(5, 512, C)])
    assert before == {A + A + A, B + A + A}
    assert after == {B + A + A, B + C + A}


def test_a_flush_does_not_cover_a_write_that_ended_after_it_began() -> None:
    assert windows([write(1, 0, B, end=4), flush(3), write(6, 0, C, end=0)])[-1] == {A + A + A, B + A + A, C + A + A}


def test_a_flush_of_one_file_does_nothing_for_another() -> None:
    other = Op(3, 4, FLUSH, 2)
    disk = Disk({(ROOT, "f"): 1, (ROOT, "g"): 2}, {1: A, 2: A})
    assert [contents(window) for window in disk.walk([write(1, 0, B), other])] == [{A, B}, {A, B}]


def test_a_dsync_write_settles_itself_alone() -> None:
    before, after = windows([write(1, 0, B), write(3, 512, C, dsync=True)])
    assert before == {A + A + A, B + A + A, A + C + A, B + C + A}
    assert after == {A + C + A, B + C + A}


def test_of_two_writes_to_one_sector_either_may_be_there() -> None:
    assert windows([write(1, 0, B), write(3, 0, C)]) == [{A + A + A, B + A + A, C + A + A}]


def test_a_file_that_grew_may_have_zeros_where_no_data_came() -> None:
    disk = Disk({(ROOT, "f"): 1}, {1: A})
    window, = disk.walk([write(1, 512, B), write(3, 1024, C)])
    zero = bytes(512)
    assert contents(window, 300) >= {A, A + B, A + zero + C, A + B + C}
    drawn = {content(window, window._drawn(random.Random(number))) for number in range(300)}
    assert drawn >= {A, A + zero, A + B + zero, A + zero + zero, A + zero + C}


def test_part_of_a_sector_keeps_the_rest() -> None:
    assert windows([write(1, 100, b"x" * 20)])[0] == {A + A + A, b"a" * 100 + b"x" * 20 + b"a" * 392 + A + A}


def test_names_are_there_or_not_until_their_directory_is_flushed() -> None:
    ops = [Op(1, 2, NAME, names=(((ROOT, "d"), -1),)), Op(3, 4, NAME, names=(((-1, "new"), 1),)), Op(5, 6, FLUSH_NAMES, -1),
           Op(7, 8, NAME, names=(((-1, "new"), None), ((-1, "file"), 1))), Op(9, 10, FLUSH_NAMES, ROOT)]
    found = []
    for window in Disk({}, {}).walk(ops):
        found.append({tuple(sorted(state.names)) for state in window.states(random.Random(1), 0)})
    assert found == [
        {(), ("d",), ("d", "d/new")},
        {(), ("d", "d/new"), ("d", "d/file")},
        {("d", "d/new"), ("d", "d/file")},
    ]


def test_a_directory_takes_along_what_is_in_it() -> None:
    ops = [Op(1, 2, NAME, names=(((ROOT, "d.new"), None), ((ROOT, "d"), -1))), Op(3, 4, NAME, names=(((-1, "g"), 2),))]
    window, = Disk({(ROOT, "d.new"): -1, (-1, "f"): 1}, {1: A}).walk(ops)
    assert {tuple(sorted(state.names)) for state in window.states(random.Random(1), 0)} == {
        ("d.new", "d.new/f"), ("d", "d/f"), ("d.new", "d.new/f", "d.new/g"), ("d", "d/f", "d/g")}


def test_equal_disks_have_equal_keys_whatever_was_written() -> None:
    """So that a state is counted once, although it is found in two windows and in several ways."""
    keys = [{state.key for state in window.states(random.Random(1), 20)}
            for window in Disk({(ROOT, "f"): 1}, {1: A + A + A}).walk([write(1, 0, B), flush(3), write(5, 512, C), flush(7)])]
    assert [len(one) for one in keys] == [2, 2, 1]
    assert len(keys[0] | keys[1] | keys[2]) == 3


def test_a_settled_file_is_what_was_written() -> None:
    chosen = random.Random(3)
    ops, expected = [], bytearray(4096)
    for number in range(40):
        offset, data = chosen.randrange(3000), chosen.randbytes(chosen.randrange(1, 1000))
        ops += [write(number * 10, offset, data), flush(number * 10 + 5)]
        expected[offset : offset + len(data)] = data
    disk = Disk({(ROOT, "f"): 1}, {1: bytes(4096)})
    for window in disk.walk(ops):
        last = window
    assert contents(last) == {bytes(expected)}
    assert disk.hash == Disk({(ROOT, "f"): 1}, {1: bytes(expected)}).hash
