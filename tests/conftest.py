"""Fixtures that every room shares: a real service in its own process (see tests/running.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.running import RunningServer

# What an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A service on a fresh directory, on the machine's clock; killed at the end if it still runs."""
    running = RunningServer(tmp_path / "server")
    running.start()
    yield running
    running.kill()


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Makes services with other arguments (not started); each in its own directory unless `directory` is given."""
    made: list[RunningServer] = []

    def make(**arguments: Any) -> RunningServer:
        directory = arguments.pop("directory", tmp_path / f"server-{len(made)}")
        made.append(RunningServer(directory, **arguments))
        return made[-1]

    yield make
    for running in made:
        running.kill()
