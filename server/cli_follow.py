"""The command line of the follower: `daybook follow`. Parses and prints; the work is in server/follow.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ledger import limits
from server.console import fail, out, say


def follow(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory. A service may be running on it.")],
    control: Annotated[str, typer.Option(metavar="HOST:PORT", help="The follower's control port: reads, health, reflection.")
                       ] = "127.0.0.1:7073",
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="/metrics and /healthz of the follower.")] = "127.0.0.1:7074",
    members_max: Annotated[int | None, typer.Option(help="Accounts that the tables have room for. Default: as the newest snapshot has it.")
                           ] = None,
    ids_max: Annotated[int | None, typer.Option(help="Request ids (and as many receipt keys) remembered. Default: as the newest "
                                                     "snapshot has it.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow addresses other than loopback. There is no TLS and no access "
                                                              "control yet: only for a network that is trusted.")] = False,
    snapshot_entries: Annotated[int, typer.Option(min=1, help="Write a snapshot after so many entries (and after ten minutes with "
                                                              "any, and at the stop).")] = limits.SNAPSHOT_ENTRIES,
    snapshot_pause: Annotated[int, typer.Option(hidden=True, min=0)] = limits.SNAPSHOT_PAUSE_S,
    child_of: Annotated[int | None, typer.Option(hidden=True)] = None,
    clock_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    ports_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Follow a journal as it grows: serve reads, write snapshots for quick starts, feed indexes.

    `daybook serve` starts one by itself unless it is told --no-follow. The follower reads what is in LMDB, so it is a tenth of a second
    behind the service, and says how far. It never holds the service up.
    """
    from server.config import RefusedToStart, check_sizes, parse_address
    from server.follow import FollowConfig, Following
    from server.follow import follow as run

    begun = time.perf_counter()
    try:
        check_sizes(members_max, ids_max)
        ports = parse_address(control, "--control", insecure=insecure), parse_address(http, "--http", insecure=insecure)
        config = FollowConfig(data, *ports, members_max, ids_max, snapshot_entries, snapshot_pause, clock_file,
                              ports_file, child_of)

        def started(what: Following) -> None:
            seconds = time.perf_counter() - begun
            if child_of is None:
                out.print(_start_table(what, seconds))
            else:
                say(f"the follower follows from sequence {what.follower.begun_at:,} after {seconds:.2f} s: control port "
                    f"{what.ports['control']}, metrics http://{what.ports['http']}/metrics")

        code = run(config, started=started, say=say)
    except RefusedToStart as error:
        raise fail(str(error), error.hint) from None
    raise typer.Exit(code)


def _start_table(what: Any, seconds: float) -> Table:
    table = Table(title="daybook follows", show_header=False, title_justify="left")
    members, ids, _ = what.follower.core.sizes
    for name, value in (
        ("data", str(what.config.data.resolve())),
        ("begins at", f"sequence {what.follower.sequence:,}"),
        ("control port", what.ports["control"]), ("metrics", f"http://{what.ports['http']}/metrics"),
        ("room for", f"{members:,} members, {ids:,} request ids"), ("started in", f"{seconds:.2f} s"),
    ):
        table.add_row(name, value)
    return table
