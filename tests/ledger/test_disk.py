"""A bad disk under the engine (D7), by the preloaded shim: every single write and flush fails once; full disks; a clock that steps.

After each failure: the process has ended with status 70 (or refused to start), a restart on the healed disk works, and nothing that
was acknowledged is lost.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.conftest import ROOT
from tests.shim.shim import FLUSH, JOURNAL, META, OTHER, TAIL, WRITE, Shim

GROUPS = 4


class Driver:
    """disk_driver.py under the shim."""

    def __init__(self, folder: Path) -> None:
        self.shim = Shim(folder)
        self.errors = (folder / "driver.stderr").open("w+")
        self.process = subprocess.Popen([sys.executable, "-m", "tests.ledger.disk_driver"], cwd=ROOT, env=self.shim.environment(),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1)

    def run(self, directory: Path, groups: int = GROUPS) -> Run:
        assert self.process.stdin is not None and self.process.stdout is not None
        error_at = self.errors.seek(0, 2)
        self.process.stdin.write(f"run {directory} {groups}\n")
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if line.startswith("exit "):
                break
        self.errors.seek(error_at)
        return Run(lines, self.errors.read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.errors.close()


class Run:
    """What a run said."""

    def __init__(self, lines: list[str], errors: str) -> None:
        self.lines, self.errors = lines, errors
        self.code = int(lines[-1].split()[1])
        self.acked = max((int(line.split()[1]) for line in lines if line.startswith("ack ")), default=0)
        self.gates = [int(line.split()[1]) for line in lines if line.startswith("gate ")]
        self.refused = next((line for line in lines if line.startswith("refused ")), "")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    made = Driver(tmp_path)
    yield made
    made.close()


@pytest.fixture
def template(tmp_path: Path, driver: Driver) -> Path:
    """A directory with some groups in the journal, to copy."""
    assert driver.run(tmp_path / "template").code == 0
    return tmp_path / "template"


def check_healed(driver: Driver, directory: Path, acked: int) -> None:
    driver.shim.heal()
    again = driver.run(directory, 1)
    assert again.code == 0, (again.lines, again.errors)
    first = int(again.lines[0].split()[1])
    assert first >= acked, f"acknowledged up to {acked}, recovered up to {first}"


@pytest.mark.parametrize("short", [False, True], ids=["EIO", "short write"])
def test_every_write_and_flush_that_fails_ends_the_process_and_loses_nothing(driver: Driver, template: Path, short: bool) -> None:
    number, codes = 0, []
    while True:
        number += 1
        driver.shim.fail(number, errno.EIO, short=short)
        run = driver.run(template, 2 if short else GROUPS)
        if driver.shim.failed() == 0:
            assert run.code == 0
            break
        codes.append(run.code)
        if number == 1:  # the start flushes the journal before it relies on it
            assert run.code == 3 and "journal/data.mdb) cannot be flushed: Input/output error" in run.refused
            continue
        assert run.code == 70, (number, run.lines, run.errors)
        assert run.errors.count("\n") == 1 and "daybook: writing the" in run.errors and "start it again" in run.errors
        check_healed(driver, template, run.acked)
    assert len(codes) >= 2 * (2 if short else GROUPS) + 4, "a group is a write and a flush; a drain at least four"


def test_every_failure_during_creation_is_repaired_by_the_next_start(driver: Driver, tmp_path: Path) -> None:
    """Each start finds what the one before left, and fails one operation later. A creation writes 16 MB, so none is done in vain."""
    number, codes = 0, set()
    directory = tmp_path / "new"
    while True:
        number = number + 1 if number != 6 else 16  # in between the tail's megabytes are written one like the other
        driver.shim.fail(number, errno.ENOSPC, files=TAIL | JOURNAL | META | OTHER)
        run = driver.run(directory, 0)
        if driver.shim.failed() == 0:
            assert run.code == 0
            break
        # Refused, or ended by the first flush, or (a drain that met a full disk once) waited out.
        assert run.code in (0, 3, 70), (number, run.lines, run.errors)
        assert run.code != 3 or run.refused
        codes.add(run.code)
        if (directory / "FORMAT").exists():
            check_healed(driver, directory, run.acked)
            shutil.rmtree(directory)
        else:
            assert run.acked == 0
    assert number > 20 and codes == {0, 3, 70}


def test_full_disk_under_the_drain_is_waited_out(driver: Driver, template: Path) -> None:
    """The data is still in the tail: the gate closes, the drain tries again, the gate opens by itself."""
    driver.shim.fail(2, errno.ENOSPC, count=3, files=JOURNAL)  # the first is the flush at the start
    run = driver.run(template)
    assert run.code == 0, (run.lines, run.errors)
    assert driver.shim.failed() == 3
    assert run.gates[0] == 2 and run.gates[-1] == 0
    assert "stopped 0" in run.lines
    check_healed(driver, template, run.acked)


def test_full_disk_until_the_stop_leaves_the_groups_in_the_tail(driver: Driver, template: Path) -> None:
    driver.shim.fail(2, errno.ENOSPC, count=10**9, files=JOURNAL)
    run = driver.run(template, 3)
    assert run.code == 0
    left = [line for line in run.lines if line.startswith("stopped ")]
    assert int(left[0].split()[1]) >= 3, "three groups or more could not be drained"
    check_healed(driver, template, run.acked)


def test_failed_meta_page_is_not_taken_for_a_full_disk(driver: Driver, template: Path) -> None:
    """LMDB gives the environment up when its meta page cannot be written: so does the service."""
    driver.shim.fail(1, errno.ENOSPC, count=10**9, files=META)
    run = driver.run(template)
    assert run.code == 70, (run.lines, run.errors)
    check_healed(driver, template, run.acked)


def test_group_is_one_write_and_one_flush(driver: Driver, template: Path) -> None:
    before = len(list(driver.shim.records()))
    driver.run(template)
    tail = [record for record in driver.shim.records()][before:]
    tail = [record for record in tail if record.file == TAIL]
    groups = [record for record in tail if record.op == WRITE]
    assert [record.op for record in tail] == [WRITE, FLUSH] * len(groups) and len(groups) >= GROUPS
    assert all(record.size % 4096 == 0 and record.offset % 4096 == 0 for record in groups)
    ends = [record.offset + record.size for record in groups]
    assert [record.offset for record in groups[1:]] == ends[:-1], "no block is written twice"
