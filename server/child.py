"""The follower as a child of the service: started, watched, started again when it ends, ended with the service.

Not for what a follower does (server/follow.py). It is a process of its own so that nothing it does, and nothing that happens to it, reaches
the tills. Made and stopped by server/service.py; everything here runs on its asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable

from server.config import ServeConfig

DELAY_S_FIRST = 0.5  # before the first new start; it doubles with each that follows
DELAY_S_MAX = 60.0
STEADY_S = 60.0  # whoever ran so long begins with the first delay again
STOP_S = 45.0  # catching up and a last snapshot of 10M members, with the disk for itself

Say = Callable[[str], None]


class FollowerChild:
    """One follower process at a time, for as long as the service runs."""

    def __init__(self, config: ServeConfig, say: Say) -> None:
        self.running = False
        self.starts = 0
        self._config = config
        self._say = say
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    def stats(self) -> dict[str, int]:
        """Plain numbers for metrics."""
        return {"running": int(self.running), "restarts": max(0, self.starts - 1)}

    def command(self) -> list[str]:
        config = self._config
        assert config.follow_control is not None and config.follow_http is not None
        line = [sys.executable, "-m", "server", "follow", str(config.data), "--control", str(config.follow_control),
                "--http", str(config.follow_http), "--members-max", str(config.members_max), "--ids-max", str(config.ids_max),
                "--snapshot-entries", str(config.snapshot_entries), "--child-of", str(os.getpid())]
        if config.insecure:
            line.append("--insecure")
        for flag, path in (("--clock-file", config.clock_file), ("--ports-file", config.follow_ports_file)):
            if path is not None:
                line += [flag, str(path)]
        return line

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        delay = DELAY_S_FIRST
        while not self._stopping:
            begun = loop.time()
            self.starts += 1
            try:
                self._process = await asyncio.create_subprocess_exec(*self.command(), stdin=asyncio.subprocess.DEVNULL)
            except OSError as error:
                why = f"could not be started: {error.strerror}"
            else:
                self.running = True
                code = await self._process.wait()
                self.running = False
                why = f"ended with {code}"
            if self._stopping:
                return
            if loop.time() - begun >= STEADY_S:
                delay = DELAY_S_FIRST
            self._say(f"the follower {why}: the service goes on; started again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(DELAY_S_MAX, 2 * delay)

    def hold(self) -> None:
        """The service stops: whoever ends from now on is not started again."""
        self._stopping = True

    async def stop(self) -> None:
        """Let it catch up and write a last snapshot, then end it; at most STOP_S. After the ledger's own stop."""
        self.hold()
        if self._task is None:
            return
        if self.running:
            self._signal("terminate")
            done, _ = await asyncio.wait([self._task], timeout=STOP_S)
            if not done:
                self._say(f"the follower did not end within {STOP_S:g} s: killed; the next start replays more")
                self.kill()
                await self._task
        else:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def kill(self) -> None:
        self._signal("kill")

    def _signal(self, how: str) -> None:
        if self.running and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                getattr(self._process, how)()
