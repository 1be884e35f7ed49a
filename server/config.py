"""What `daybook serve` was asked to do, checked: addresses, paths, sizes.

Not for bounds (ledger/limits.py) and not for what only the ledger can check (its directory, its programme). Made by
server/cli.py, read by server/service.py.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ledger import limits

SERVICE = "loyalty.ledger.v1.LedgerService"
ADMIN_SERVICE = "loyalty.ledger.v1.AdminService"

# Method of ledger/_layout.pxd by the name of its call; numbers are never reused.
METHODS = {"EarnPoints": 1, "BurnPoints": 2, "ReservePoints": 3, "CaptureReservation": 4, "ReleaseReservation": 5,
           "CommitReceipt": 6, "EnrollMember": 7, "GetBalance": 8, "GetOperation": 9,
           "ReturnReceipt": 30, "AnswerChallenge": 26, "BatchPost": 14, "BatchGetBalances": 15, "QuoteReceipt": 16}
ADMIN_METHODS = {"AdjustPoints": 11, "LinkIdentifier": 12, "UnlinkIdentifier": 13, "SetSegments": 17, "SetAttributes": 18,
                 "PublishRules": 19, "GetRules": 20, "ListRules": 21, "DiffRules": 22, "SetRung": 24, "DecideReview": 25,
                 "ListReviews": 27, "ChangeBlocks": 28, "ListLimitKeys": 29}  # on the control port only
METHOD_NAMES = {0: "unknown", 10: "HealthCheck", 23: "RulesStep", 31: "KeysStep",
                **{number: name for name, number in (METHODS | ADMIN_METHODS).items()}}


class RefusedToStart(Exception):
    """The service cannot start as asked. `str()` says what is wrong, `hint` what to do next."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Address:
    """Where a port listens. Port 0: the kernel chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, flag: str, *, insecure: bool) -> Address:
    """HOST:PORT or [IPV6]:PORT, loopback unless `insecure`. Errors: RefusedToStart."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise RefusedToStart(f"{flag} must be HOST:PORT, was {text!r}", "write an IPv6 address in brackets: [::1]:7070")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise RefusedToStart(f"{flag} must be HOST:PORT with a port of 0..65535, was {text!r}", f"for example {flag} 127.0.0.1:7070")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise RefusedToStart(f"{flag} needs an IP address, was {host!r}", "names are not resolved: give 127.0.0.1 or the machine's address"
                             ) from None
    if not loopback and not insecure:
        raise RefusedToStart(f"{flag} {text} is not a loopback address, and there is no TLS and no access control yet",
                             "listen on 127.0.0.1, or say --insecure if the network around it is trusted")
    return Address(host, int(port))


def _check_number(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise RefusedToStart(f"{flag} must be {low}..{high}, was {value}")


def check_sizes(members_max: int | None, ids_max: int | None) -> None:
    """The bounds of the tables' sizes; None: not given. Errors: RefusedToStart."""
    if members_max is not None:
        _check_number("--members-max", members_max, 1, limits.MEMBERS_MAX_LIMIT)
    if ids_max is not None:
        _check_number("--ids-max", ids_max, 1, limits.IDS_MAX_LIMIT)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One start. Use `make`, which checks."""

    data: Path
    program: Path
    checkout: Address
    control: Address
    http: Address
    tail: Path | None
    members_max: int
    ids_max: int
    tail_bytes: int
    accept_time: bool
    clock_file: Path | None
    ports_file: Path | None
    insecure: bool = False
    follow_control: Address | None = None  # None: no follower
    follow_http: Address | None = None
    snapshot_entries: int = limits.SNAPSHOT_ENTRIES

    @property
    def follow_ports_file(self) -> Path | None:
        """Where the follower says which ports it has."""
        return None if self.ports_file is None else self.ports_file.with_name(self.ports_file.name + ".follow")

    @classmethod
    def make(cls, *, data: Path, program: Path, checkout: str, control: str, http: str, insecure: bool, tail: Path | None,
             members_max: int, ids_max: int, tail_bytes: int, accept_time: bool, clock_file: Path | None,
             ports_file: Path | None, follow: bool = False, follow_control: str = "", follow_http: str = "",
             snapshot_entries: int = limits.SNAPSHOT_ENTRIES) -> ServeConfig:
        """From the command line's values. Errors: RefusedToStart."""
        flags = [("--checkout", checkout), ("--control", control), ("--http", http)]
        if follow:
            flags += [("--follow-control", follow_control), ("--follow-http", follow_http)]
        addresses = [parse_address(text, flag, insecure=insecure) for flag, text in flags]
        taken = [str(address) for address in addresses if address.port]
        if len(set(taken)) != len(taken):
            raise RefusedToStart(f"two ports have the same address: {', '.join(taken)}", "give each its own port")
        check_sizes(members_max, ids_max)
        _check_number("--tail-bytes", tail_bytes, limits.TAIL_BYTES_MIN, 1 << 40)
        return cls(data, program, *addresses[:3], tail, members_max, ids_max, tail_bytes, accept_time, clock_file, ports_file, insecure,
                   *(addresses[3:] or (None, None)), snapshot_entries)
