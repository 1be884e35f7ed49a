from pathlib import Path

from ledger._follower import FollowerCore

class Reader:
    def __init__(self, core: FollowerCore, clock_file: Path | None) -> None:
        """clock_file: 8 bytes that hold the time, for tests; None: the machine's clock. Errors: OSError, MemoryError."""
    def read(self, method: int, request: bytes) -> tuple[int, bytes, bytes]:
        """(gRPC code, response or google.rpc.Status, message). GetBalance and BatchGetBalances alone; the caller holds the follower's
        lock and has checked the request's size."""
