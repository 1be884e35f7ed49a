"""Ports: whether one is free, the refusal when it is not, and the file that says which were chosen.

Not for what is served on them. Used by server/service.py and server/follow.py.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from server.config import Address, RefusedToStart


def check_free(address: Address, flag: str) -> None:
    """Refuse a taken port before a long recovery, not after it. Errors: RefusedToStart."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            raise cannot_listen(address, flag, error) from None


def cannot_listen(address: Address, flag: str, error: OSError) -> RefusedToStart:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return RefusedToStart(f"{flag} cannot listen on {address}: {reason}",
                          f"stop what uses the port (ss -ltnp shows it), or give another address with {flag}")


def write_ports(path: Path | None, ports: dict[str, int]) -> None:
    """The ports and this process's id as JSON, complete under its name or not there."""
    if path is not None:
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps({**ports, "pid": os.getpid()}) + "\n")
        new.replace(path)
