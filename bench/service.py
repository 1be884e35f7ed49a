"""A ledger's service in a process of its own and its follower in another, for the demo and the benches: start, wait, read metrics, end.

Not for tests (tests/running.py can kill it and move its clock). Used by bench/demo.py, bench/run.py and bench/beside.py.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "programs" / "base.yaml"
ANY_PORTS = {name: "127.0.0.1:0" for name in ("checkout", "control", "http")}
START_S_MAX = 60
STOP_S_MAX = 60


class ServiceFailed(Exception):
    """The service did not start or cannot be read; the text carries its own words."""


class _Process:
    """A `daybook` command that serves, in a process of its own, with its log and its file of ports."""

    what = ""

    def __init__(self, data: Path, name: str, ports: dict[str, str], arguments: list[str], start_s: float) -> None:
        self.data = data
        self.log = data.with_name(data.name + name + ".log")
        self.ports: dict[str, int] = {}
        self._start_s = start_s
        self._ports_file = data.with_name(data.name + name + ".ports.json")
        self._ports_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "server", *arguments, "--ports-file", str(self._ports_file)]
        for port, address in ports.items():
            command += [f"--{port}", address]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C is for this process, which then ends the service in good order.
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Until it serves. Errors: ServiceFailed with its own words."""
        until = time.monotonic() + self._start_s
        while not self._ports_file.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise ServiceFailed(f"{self.what} did not start:\n{self.log.read_text().strip()}")
            time.sleep(0.02)
        self.ports = json.loads(self._ports_file.read_text())

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels, as they stand in the text."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise ServiceFailed(f"the /metrics of {self.what} cannot be read: {error}") from None
        return {key: float(value) for key, value in re.findall(r"^([a-z_]+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE)}

    def stop(self) -> int:
        """End it politely; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(max(STOP_S_MAX, self._start_s))
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._ports_file.unlink(missing_ok=True)
        return self.process.wait()


class Service(_Process):
    """`daybook serve` on its own directory, without a follower."""

    what = "the service"

    def __init__(self, data: Path, ports: dict[str, str], *arguments: str, program: Path = PROGRAM, start_s: float = START_S_MAX) -> None:
        super().__init__(data, "", ports, ["serve", "--no-follow", "--data", str(data), "--program", str(program), *arguments], start_s)


class Follower(_Process):
    """`daybook follow` beside a service, or alone, as the service would start it."""

    what = "the follower"

    def __init__(self, data: Path, *arguments: str, start_s: float = START_S_MAX) -> None:
        ports = {name: ANY_PORTS[name] for name in ("control", "http")}
        super().__init__(data, ".follower", ports, ["follow", str(data), *arguments], start_s)
