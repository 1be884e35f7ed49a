"""Checkout ports for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.checkout import Port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """One port for all tests that leave it as it was."""
    made = Port(tmp_path_factory.mktemp("transport"))
    yield made
    made.close()


@pytest.fixture
def new_port(tmp_path: Path) -> Iterator[Callable[..., Port]]:
    """Makes ports with lower bounds, or ports that are to be stopped."""
    made: list[Port] = []

    def make(*arguments: str, **bounds: Any) -> Port:
        made.append(Port(tmp_path / str(len(made)), *arguments, **bounds))
        return made[-1]

    yield make
    for one in made:
        one.close()
