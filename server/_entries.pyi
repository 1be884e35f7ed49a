from collections.abc import Callable
from typing import Any

class Encoder:
    """Entries as JournalEntry messages. Not for several threads at once. Errors: ValueError for bytes that are no entry, MemoryError."""

    versions: int
    """How many programmes it knows: versions 1 to this."""

    def __init__(self, limit_names_of: Callable[[int], list[str]]) -> None:
        """limit_names_of: the names of a version's limits, in their order; empty: they cannot be had. Asked once for each version."""
    def add_program(self, entry: bytes) -> None:
        """The next PROGRAM entry of the journal: names the wallets of its version."""
    def entry(self, sequence: int, entry: bytes) -> bytes:
        """One entry as field 1 (`entries`) of an answer: answers are such pieces back to back."""
    def group(self, record: Any, from_sequence: int, size_max: int, entries_max: int) -> tuple[bytes, int, int] | None:
        """A group's entries from a sequence on, as field 1 of an answer, until size_max bytes or entries_max entries are reached.

        Shape: (bytes, entries, the sequence behind the last of them). None: an entry's programme was not added yet.
        """
