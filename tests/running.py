"""A real service in its own process, for tests: start, stop, kill, restart, call, move the clock.

Not for what a test asserts and not for the service's own code. Used through the fixtures of tests/conftest.py,
or directly by tests that need several servers or unusual arguments.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc

from ledger import limits

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "programs" / "base.yaml"
START_S_MAX = 150.0  # a start that takes longer is a hang: tables are small in tests
STOP_S_MAX = 120.0  # DRAIN_GRACE_S and the last drain, with room for a busy machine


class DidNotStart(Exception):
    """The process ended before it served; `code` and `output` say how."""

    def __init__(self, code: int | None, output: str) -> None:
        super().__init__(f"the service ended with {code} before it served:\n{output}")
        self.code = code
        self.output = output


class RunningServer:
    """One service on one data directory. Ports are chosen by the kernel and change with every start.

    Attributes while it runs: `ports` ("checkout", "control", "http"), `pid`, `channel`, `stub`, `control_channel`,
    `control_stub`. `clock` (us since 1970) is None for the machine's clock; with a number the service starts at it and
    stands still until `set_clock`.
    """

    def __init__(self, directory: Path, *, program: Path = PROGRAM, clock: int | None = None,
                 arguments: tuple[str, ...] = ("--members-max", "20000", "--ids-max", "200000"),
                 environment: dict[str, str] | None = None, follows: bool = False) -> None:
        self.directory = Path(directory)
        self.data = self.directory / "data"
        self.program = Path(program)
        self.arguments = arguments
        self.environment = environment or {}
        self.follows = follows  # start a follower beside the service; its ports: ports.json.follow
        self.clock_file = self.directory / "clock"
        self.has_clock = clock is not None
        self.ports: dict[str, int] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._channels: dict[str, grpc.Channel] = {}
        self._log = self.directory / "server.log"
        self.directory.mkdir(parents=True, exist_ok=True)
        if clock is not None:
            self.set_clock(clock)

    # --- life ---------------------------------------------------------------------------------------------------
    def command(self) -> list[str]:
        """The command line of the next start."""
        line = [sys.executable, "-m", "server", "serve", "--data", str(self.data), "--program", str(self.program)]
        for port in ("checkout", "control", "http"):
            line += [f"--{port}", "127.0.0.1:0"]
        line += ["--ports-file", str(self.directory / "ports.json")]
        if self.follows:
            line += ["--follow-control", "127.0.0.1:0", "--follow-http", "127.0.0.1:0"]
        else:
            line += ["--no-follow"]
        if "--tail-bytes" not in self.arguments:
            line += ["--tail-bytes", str(limits.TAIL_BYTES_MIN)]
        if self.has_clock:
            line += ["--clock-file", str(self.clock_file)]
        return [*line, *self.arguments]

    def start(self) -> RunningServer:
        """Start and wait until every port serves. Errors: DidNotStart."""
        assert self.process is None, "already running"
        ports_file = self.directory / "ports.json"
        ports_file.unlink(missing_ok=True)
        self.follow_ports_file.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            log_from = log.tell()
            self.process = subprocess.Popen(self.command(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, "COLUMNS": "140", **self.environment})
        until = time.monotonic() + START_S_MAX
        while not ports_file.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                code = self.process.poll()
                self.kill()
                raise DidNotStart(code, self._log.read_bytes()[log_from:].decode(errors="replace"))
            time.sleep(0.01)  # the poll's step: the file appears by rename when everything serves
        self.ports = json.loads(ports_file.read_text())
        return self

    def _ended(self) -> int:
        assert self.process is not None
        code = self.process.wait(STOP_S_MAX)
        self.process = None
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self.ports = {}
        return code

    def kill(self) -> None:
        """kill -9, at once."""
        if self.process is not None:
            self.process.kill()
            self._ended()

    def terminate(self, signal_number: int = signal.SIGTERM) -> int:
        """Ask for a graceful stop and return the exit code."""
        assert self.process is not None, "not running"
        self.process.send_signal(signal_number)
        try:
            return self._ended()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def restart(self, *, kill: bool = False) -> RunningServer:
        """Stop (or kill -9) and start again on the same directory."""
        if kill:
            self.kill()
        else:
            code = self.terminate()
            assert code == 0, f"the stop ended with {code}:\n{self.log()}"
        return self.start()

    def wait(self, timeout_s: float = STOP_S_MAX) -> int:
        """Wait for an end that something else causes; returns the exit code."""
        assert self.process is not None, "not running"
        self.process.wait(timeout_s)
        return self._ended()

    @property
    def follow_ports_file(self) -> Path:
        """Ports and process id of the follower, once it serves."""
        return self.directory / "ports.json.follow"

    @property
    def pid(self) -> int:
        assert self.process is not None, "not running"
        return self.process.pid

    def log(self) -> str:
        """All that the service printed so far, of all starts."""
        return self._log.read_text(errors="replace")

    # --- calls --------------------------------------------------------------------------------------------------
    def address(self, port: str = "checkout") -> str:
        return f"127.0.0.1:{self.ports[port]}"

    def _channel(self, port: str) -> grpc.Channel:
        if port not in self._channels:
            # An own connection pool: two servers after one another may get the same port from the kernel.
            self._channels[port] = grpc.insecure_channel(self.address(port), options=[("grpc.use_local_subchannel_pool", 1)])
        return self._channels[port]

    @property
    def channel(self) -> grpc.Channel:
        return self._channel("checkout")

    @property
    def control_channel(self) -> grpc.Channel:
        return self._channel("control")

    @property
    def stub(self) -> Any:
        """LedgerService on the checkout port."""
        return self._stub(self.channel)

    @property
    def control_stub(self) -> Any:
        """LedgerService on the control port."""
        return self._stub(self.control_channel)

    @property
    def admin_stub(self) -> Any:
        """AdminService on the control port."""
        from server._pb.loyalty.ledger.v1 import admin_pb2_grpc

        return admin_pb2_grpc.AdminServiceStub(self.control_channel)

    @staticmethod
    def _stub(channel: grpc.Channel) -> Any:
        from server._pb.loyalty.ledger.v1 import ledger_pb2_grpc

        return ledger_pb2_grpc.LedgerServiceStub(channel)

    def get(self, path: str) -> str:
        """A page of the HTTP port. Errors: urllib.error.HTTPError."""
        with urllib.request.urlopen(f"http://{self.address('http')}{path}", timeout=60) as answer:
            return answer.read().decode()

    def metrics(self) -> dict[str, float]:
        """All samples of /metrics: 'name{label="value",...}' (labels in the page's order) -> value."""
        samples = {}
        for line in self.get("/metrics").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    # --- time ---------------------------------------------------------------------------------------------------
    def set_clock(self, time_us: int) -> None:
        """Move the service's clock (only with `clock` given); it is seen at the loop's next turn."""
        assert self.has_clock, "the server runs on the machine's clock: give clock=..."
        self.clock_file.parent.mkdir(parents=True, exist_ok=True)
        with self.clock_file.open("r+b" if self.clock_file.exists() else "wb") as file:
            file.write(time_us.to_bytes(8, "little"))  # one aligned word: the service maps the file
