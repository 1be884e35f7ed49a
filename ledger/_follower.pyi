from ledger._feed import GroupFeed

class FollowerCore(GroupFeed):
    sizes: tuple[int, int, int]
    def __init__(self, directory: bytes, key: bytes | None, members_max: int, ids_max: int, reservations_max: int) -> None:
        """key: the identity key; None: identifiers cannot be looked up. Errors: MemoryError."""
    @property
    def digest(self) -> bytes: ...
    def stats(self) -> dict[str, int]: ...
