from pathlib import Path

class SnapshotUnusable(Exception): ...
class TablesTooSmall(Exception): ...

class Snapshot:
    """A snapshot's file whose head was read and fits its hash. Errors: SnapshotUnusable, MemoryError."""

    path: str
    size: int
    def __init__(self, path: Path) -> None: ...
    @property
    def sequence(self) -> int:
        """The last entry that is in the state."""
    @property
    def head_hash(self) -> bytes:
        """Hash of the group that ends with it."""
    @property
    def directory(self) -> bytes: ...
    @property
    def head(self) -> dict[str, int]:
        """sequence, time_us, keys_from, digest (bytes), counts of the state, sizes of the writer's tables."""
