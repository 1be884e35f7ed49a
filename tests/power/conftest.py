"""Makes recordings and has them judged: by real processes, on memory where there is enough of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power.judge import Spec, Verdict
from tests.power.recording import Recorder, Recording
from tests.running import ROOT
from tests.shim.shim import Shim

JUDGES = min(2, os.cpu_count() or 1)
MEMORY_MIN = 2 << 30  # free bytes that /dev/shm must have; a small one would make the space gate close


class Laboratory:
    """A folder whose `disk` is watched, a driver process on it, and judges. The processes stay; reset() makes the rest new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.shim = Shim(folder, disk=self.disk)
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.reset()

    def reset(self) -> None:
        """An empty disk, no faults."""
        self.data = self.disk / "data"
        shutil.rmtree(self.disk)
        self.disk.mkdir()
        self.shim.reset()

    def _process(self, name: str, module: str, shim: Shim) -> subprocess.Popen[str]:
        if name not in self._processes or self._processes[name].poll() is not None:
            with (self.folder / f"{name}.stderr").open("w") as errors:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-m", module], cwd=ROOT, env={**shim.environment(), "OPENBLAS_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1)
        return self._processes[name]

    def _hear(self, name: str) -> str:
        out = self._processes[name].stdout
        assert out is not None
        line = out.readline()
        assert line, f"{name} ended with {self._processes[name].wait(60)}:\n{(self.folder / f'{name}.stderr').read_text()[-4000:]}"
        return line

    def run(self, *, seed: int = 1, groups: int = 10, mode: str = "alone") -> int:
        """One run of driver.py; its exit code, 0 or -9."""
        return self.drive("run", str(seed), str(groups), mode)

    def drive(self, command: str, *arguments: str) -> int:
        """Another command of driver.py on the data directory."""
        process = self._process("driver", "tests.power.driver", self.shim)
        assert process.stdin is not None
        process.stdin.write(f"{command} {self.data} {' '.join(arguments)}\n")
        said = [self._hear("driver")]
        while not said[-1].startswith("exit "):
            said.append(self._hear("driver"))
        code = int(said[-1].split()[1])
        assert code in (0, -9), (said, (self.folder / "driver.stderr").read_text())
        return code

    def recorder(self) -> Recorder:
        return Recorder(self.shim, self.disk, self.data)

    def judge(self, *recordings: Recording | tuple[Recording, int], seed: int = 1, drawn: int = 10, share: int = 1, again: int = 4,
              data: str = "data", copy: Path | None = None, key: Path | None = None, ids: bool = False) -> Verdict:
        """What all judges together say; with a place beside a recording, only its windows from there on are looked at.

        copy, key: of the back-up that is restored; ids: the runs of ids are looked at too.
        """
        paths = []
        for number, one in enumerate(recordings):
            recording, after = (one, -1) if isinstance(one, Recording) else one
            paths.append((str(recording.save(self.folder / f"recording-{number}")), after))
        for index in range(JUDGES):
            folder = self.folder / f"judge-{index}"
            if not folder.exists():
                (folder / "disk").mkdir(parents=True)
            spec = Spec(paths, str(folder / "disk"), str(folder), data, seed, index, JUDGES, drawn, share, again,
                        str(copy or ""), str(key or ""), ids)
            shim = Shim.attach(folder, folder / "disk") if (folder / "shim.log").exists() else Shim(folder, disk=folder / "disk")
            process = self._process(folder.name, "tests.power.judge", shim)
            assert process.stdin is not None
            process.stdin.write(json.dumps(spec._asdict()) + "\n")
        verdicts = [Verdict(**json.loads(self._hear(f"judge-{index}"))) for index in range(JUDGES)]
        for path, _ in paths:
            Path(path).unlink()
        both = Verdict(sum(one.states for one in verdicts), sum(one.recoveries for one in verdicts), max(one.windows for one in verdicts),
                       max(one.exhaustive for one in verdicts), [fault for one in verdicts for fault in one.faults],
                       sum(one.cpu_ms for one in verdicts))
        print(f"{both.states} crash states in {both.windows} windows ({both.exhaustive} exhaustive), {both.recoveries} recoveries, "
              f"{both.cpu_ms} ms of processor, {len(both.faults)} faults", flush=True)
        return both

    def close(self) -> None:
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


@pytest.fixture(scope="session")
def shared_laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """In memory, or else on the disk."""
    memory = Path("/dev/shm")
    large = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_MIN
    with tempfile.TemporaryDirectory(prefix="daybook-power-", dir=memory if large else tmp_path_factory.mktemp("power")) as folder:
        made = Laboratory(Path(folder))
        yield made
        made.close()


@pytest.fixture
def laboratory(shared_laboratory: Laboratory) -> Laboratory:
    shared_laboratory.reset()
    return shared_laboratory
