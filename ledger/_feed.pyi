from collections.abc import Sequence
from typing import Any

FAULTS: tuple[str, ...]
APPLIES: tuple[str, ...]

class GroupFeed:
    def feed(self, batch: Sequence[tuple[int, Any]]) -> tuple[int, str, int, str] | None: ...
    @property
    def last_sequence(self) -> int: ...
    @property
    def head_hash(self) -> bytes: ...
