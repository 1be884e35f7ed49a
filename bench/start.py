"""A start from a snapshot: how long until the ports of a service with ten million members answer, with a warm and with a cold page cache.

    python -m bench.start                               makes the members first: some minutes, about 25 GB
    python -m bench.start --members 100000              a look at it
    python -m bench.start --data DIR                    the starts alone, on any data directory of programs/base.yaml

The members are enrolled by BatchPost, with a card and a phone each, and given a lot for each of six days. Then a follower applies the
journal and writes a snapshot of its end, and `daybook serve` is started again and again. Cold means that the directory's files were dropped
from this machine's page cache (posix_fadvise DONTNEED); Python and its libraries stay warm, and what is below a virtual disk may remember
too. So plainly reading the snapshot's file stands beside each figure.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import _load
from bench.followed import end, memory_bytes, row
from bench.load import TargetError, describe_ends, drive
from bench.long import entry_bytes
from bench.measure import figures
from bench.rows import machine, table
from bench.service import ANY_PORTS, PROGRAM, ROOT, Service, ServiceFailed
from ledger import limits, snapshot
from ledger._snapshot import Snapshot, SnapshotUnusable
from ledger.follower import Follower
from server._pb.loyalty.ledger.v1 import ledger_pb2, ledger_pb2_grpc

MEMBERS = 10_000_000
LOTS = 6  # what the tables are planned for
CONNECTIONS = 8
BATCH = limits.BATCH_COMMANDS_MAX
START_S_MAX = 1800  # a cold start on a slow disk
BAR_S = 20.0
ACCOUNT_BYTES_DISK = 130  # an ENROLL entry with two identifiers
MEMBER_BYTES_DISK = 100  # in a snapshot, with two identifiers and six lots
KEY_BYTES_DISK = 29
SNAPSHOT_COPIES = 2
SPARE_BYTES = 2 << 30
DAY_FROM_H, DAY_HOURS = 13, 8  # one day also in the programme's zone
READ_BYTES = 1 << 20


# --- making the directory -------------------------------------------------------------------------------------------

def enroll(data: Path, members: int, lots: int, ids_max: int, console: Console) -> dict[str, Any]:
    """A journal with so many members, two identifiers and `lots` lots each. Errors: ServiceFailed, TargetError."""
    service = Service(data, ANY_PORTS, "--members-max", str(members + 1000), "--ids-max", str(ids_max), start_s=START_S_MAX)
    began, refused = time.monotonic(), 0
    try:
        service.wait()
        chain = _load.Chain(members=1, skew=0, seed=1, currency="USD", business_day=20200101)  # its days are those of `times`
        first_day = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=lots + 2)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            for turn in range(lots + 1):
                task = progress.add_task("enrolling" if turn == 0 else f"lot {turn} of {lots}", total=members)
                refused += _pass(service, chain, members, turn, first_day + datetime.timedelta(days=turn),
                                 lambda done, task=task: progress.update(task, completed=done))
        samples = service.metrics()
    except BaseException:
        service.stop()
        raise
    end(service)
    if samples["ledger_members"] != members:
        raise ServiceFailed(f"{members:,} members were enrolled, the service has {samples['ledger_members']:,.0f}")
    seconds = time.monotonic() - began
    return {"seconds": round(seconds, 1), "entries": int(samples["ledger_journal_sequence"]), "lots": int(samples["ledger_lots"]),
            "identifiers": int(samples["ledger_identifiers"]), "refused": refused,
            "entries_per_second": round(samples["ledger_journal_sequence"] / seconds)}


def _pass(service: Service, chain: _load.Chain, members: int, turn: int, day: datetime.date, watch: Any) -> int:
    """Once through all members, on a day of its own: first they are enrolled, then each gets a lot. How many were refused."""
    opens = int(datetime.datetime.combine(day, datetime.time(DAY_FROM_H), datetime.UTC).timestamp())
    client = _load.Client("127.0.0.1", service.ports["checkout"], connections=CONNECTIONS, in_flight=1, chain=chain, seed=turn)

    def look() -> None:
        if service.process.poll() is not None:
            client.stop()
            client.stop()
        watch(min(members, client.progress()["completed"] * BATCH))

    drive(client, lambda: client.prepare(0, members, enroll=turn == 0, earn=turn > 0, identifiers=2, batch=BATCH,
                                         times=(opens, opens + DAY_HOURS * 3600)), look)
    result = client.result()
    outcome = figures(result)
    if outcome["total"]["errors"]:
        raise TargetError(f"the members could not be prepared: {describe_ends(outcome)}")
    if result["completed"] < client.progress()["todo"]:
        raise KeyboardInterrupt
    watch(members)
    return result["entries_refused"]


def room_bytes(members: int, lots: int, ids_max: int) -> int:
    """What the directory takes at most."""
    entries = members * (lots + 1)
    keys = min(entries, ids_max * 3 // 2) + min(members * lots, ids_max * 3 // 2)
    journal = members * ACCOUNT_BYTES_DISK + int(members * lots * entry_bytes(0))
    return int(1.02 * journal + 2 * entries * KEY_BYTES_DISK + SNAPSHOT_COPIES * (members * MEMBER_BYTES_DISK + keys * KEY_BYTES_DISK)
               + limits.TAIL_BYTES_DEFAULT + SPARE_BYTES)


def write_snapshot(data: Path, members_max: int, ids_max: int) -> None:
    """A follower's work up to the journal's end, and a snapshot of that; prints where it is. In a process of its own."""
    with Follower(data, members_max=members_max, ids_max=ids_max) as follower:
        told = time.monotonic()
        while follower.step():
            if time.monotonic() - told > 1:
                told = time.monotonic()
                print(follower.sequence, flush=True)
        follower.write_snapshot()
        print(follower.sequence, flush=True)


def complete(data: Path, members_max: int, ids_max: int, console: Console) -> float:
    """See to it that the newest snapshot says what the journal's end says; seconds. Errors: ServiceFailed."""
    began = time.monotonic()
    with console.status("the follower applies the journal") as status:
        process = subprocess.Popen([sys.executable, "-m", "bench.start", "--part", str(data), str(members_max), str(ids_max)], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stdout or ():
                status.update(f"the follower applies the journal: {int(line):,}")
            said = process.communicate()[1]
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        raise ServiceFailed(f"the snapshot could not be written:\n{said.strip()[-2000:]}")
    return time.monotonic() - began


# --- starting -------------------------------------------------------------------------------------------------------

def newest(data: Path) -> Snapshot:
    """Errors: ServiceFailed."""
    for path in snapshot.paths(data):
        try:
            return Snapshot(path)
        except SnapshotUnusable:
            continue
    raise ServiceFailed(f"{data} has no snapshot")


def drop_cache(folder: Path) -> int:
    """Drop all files below a folder from the page cache; returns their bytes. What is not written yet would stay: it is written first."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            fd = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                size += os.fstat(fd).st_size
            finally:
                os.close(fd)
    return size


def read_plainly(path: str) -> float:
    """Seconds to read a file from its beginning to its end, and do nothing with it."""
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        room = bytearray(READ_BYTES)
        while file.readinto(room):
            pass
    return time.perf_counter() - began


def start_once(data: Path, arguments: list[str]) -> dict[str, Any]:
    """Start the service, ask each of its ports, and stop it. Shape: `seconds` from the start of the process to the last answer.

    Errors: ServiceFailed.
    """
    began = time.perf_counter()
    service = Service(data, ANY_PORTS, *arguments, start_s=START_S_MAX)
    try:
        service.wait()
        member = _ask(service)
        seconds = time.perf_counter() - began
        samples = service.metrics()
        memory = memory_bytes(service.process.pid)
        said = service.log.read_text()
    except BaseException:
        service.stop()
        raise
    end(service)
    if "passed over" in said:
        raise ServiceFailed(f"the start did not take the newest snapshot:\n{said[:2000]}")
    replayed = re.search(r"([\d,]+)\s+entries\s+replayed", said.replace("│", " "))
    return {"seconds": round(seconds, 3), "memory_bytes": memory["own"], "members": int(samples["ledger_members"]),
            "keys": int(samples["ledger_request_ids"] + samples["ledger_receipt_keys"]), "asked_member": member,
            "replayed": int(replayed[1].replace(",", "")) if replayed else None}


def _ask(service: Service) -> int:
    """Every port answers, and both gRPC ports the same. Errors: ServiceFailed."""
    request = ledger_pb2.GetBalanceRequest(member=ledger_pb2.MemberRef(member_id=1))
    answers = []
    try:
        for name in ("checkout", "control"):
            with grpc.insecure_channel(f"127.0.0.1:{service.ports[name]}") as channel:
                answers.append(ledger_pb2_grpc.LedgerServiceStub(channel).GetBalance(request, timeout=60))
        with urllib.request.urlopen(f"http://127.0.0.1:{service.ports['http']}/healthz", timeout=60) as answer:
            health = answer.read()
    except (grpc.RpcError, OSError) as error:
        raise ServiceFailed(f"a port does not answer: {error}") from None
    if answers[0].wallets != answers[1].wallets or answers[0].member_id != 1 or not health.startswith(b"ok"):
        raise ServiceFailed(f"the ports differ: {answers}, {health!r}")
    return answers[0].member_id


class Start:
    """One run on one data directory. `found` holds all figures, `rows` the table."""

    def __init__(self, data: Path, console: Console) -> None:
        self.data, self.console = data, console
        self.found: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def run(self, members_max: int, ids_max: int, warm: int, cold: int) -> None:
        self.found["snapshot_seconds"] = round(complete(self.data, members_max, ids_max, self.console), 1)
        head = newest(self.data)
        arguments = ["--members-max", str(members_max), "--ids-max", str(ids_max)]
        self.found["snapshot"] = {"bytes": head.size, **{key: head.head[key] for key in ("sequence", "members", "identifiers", "lots")}}
        for kind, count in (("cold", cold), ("warm", warm)):
            starts: list[dict[str, Any]] = []
            reads: list[float] = []
            for turn in range(count):
                with self.console.status(f"{kind} start {turn + 1} of {count}"):
                    path = newest(self.data).path
                    if kind == "cold":
                        drop_cache(self.data)
                    else:
                        read_plainly(path)
                    reads.append(round(read_plainly(path), 3))
                    if kind == "cold":
                        drop_cache(self.data)
                    starts.append(start_once(self.data, arguments))
                self.console.print(f"{kind}: {starts[-1]['seconds']:.2f} s; reading the snapshot's file {reads[-1]:.2f} s", highlight=False)
            self.found[kind] = {"starts": starts, "reads": reads}

    def judge(self) -> None:
        found = self.found["snapshot"]
        for kind in ("warm", "cold"):
            starts = self.found[kind]["starts"]
            if not starts:
                continue
            seconds = [start["seconds"] for start in starts]
            middle, read = statistics.median(seconds), statistics.median(self.found[kind]["reads"])
            last = starts[-1]
            self.rows.append(row(
                "3", f"start from a snapshot of {found['members']:,} members, {found['identifiers']:,} identifiers, {found['lots']:,} "
                f"lots, {last['keys']:,} ids and receipt keys; {kind} cache", f"<= {BAR_S:g} s" if kind == "warm" else "stated",
                f"{middle:.2f} s", f"of {len(seconds)}: {min(seconds):.2f} to {max(seconds):.2f} s; {last['replayed']} entries replayed; "
                f"reading its {found['bytes'] / 1e6:,.0f} MB plainly {read:.2f} s; {last['memory_bytes'] / 2**30:.2f} GiB in memory",
                middle <= BAR_S if kind == "warm" else None))


def main(
    members: Annotated[int, typer.Option(metavar="N", help="Members to enroll.")] = MEMBERS,
    lots: Annotated[int, typer.Option(metavar="N", help="Lots of each.")] = LOTS,
    ids_max: Annotated[int, typer.Option("--ids-max", metavar="N", help="As of `daybook serve`, whose default it is: the snapshot holds so "
                                         "many ids and receipt keys.")] = limits.IDS_MAX_DEFAULT,
    warm: Annotated[int, typer.Option(metavar="N", help="Starts with a warm page cache.")] = 3,
    cold: Annotated[int, typer.Option(metavar="N", help="Starts with a cold one.")] = 2,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Start on this data directory instead of making one. Nothing in it is "
                                              "changed but what starts and stops write, and a snapshot of its end.")] = None,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the ledger is made; its disk is measured.")] = Path("build/start"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the ledger there, for --data.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where to write all figures.")] = None,
) -> None:
    """Measure how long a start from a snapshot takes, with a warm and with a cold page cache."""
    console = Console(highlight=False)

    def refuse(option: str, rule: str) -> typer.BadParameter:
        return typer.BadParameter(rule, param_hint=f"--{option}")

    for option, value, least, most in (("members", members, 1, limits.MEMBERS_MAX_LIMIT - 1000), ("lots", lots, 0, LOTS),
                                       ("ids-max", ids_max, 1, limits.IDS_MAX_LIMIT), ("warm", warm, 0, 1000), ("cold", cold, 0, 1000)):
        if not least <= value <= most:
            raise refuse(option, f"must be {least:,}..{most:,}; was {value:,}")
    folder = Path(os.path.abspath(folder))
    made = data is None
    if data is None:
        if ids_max < members:
            raise refuse("ids-max", f"must be at least --members ({members:,}): a lot is given to all on one business day; was {ids_max:,}")
        if folder.exists() and any(folder.iterdir()):
            raise refuse("folder", f"must be new or empty; {folder} is not (a run that was cut short?): remove it, or name it with --data")
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = room_bytes(members, lots, ids_max), shutil.disk_usage(folder).free
        if needed > free:
            raise refuse("members", f"needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free")
        console.print(f"this takes at most {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free")
        data = folder / "data"
    elif not (data / "FORMAT").exists():
        raise refuse("data", f"must be a data directory; {data} has no FORMAT file")
    data = Path(os.path.abspath(data))
    about = machine(data.parent)
    console.print("; ".join(f"{key} {value}" for key, value in about.items()))
    start = Start(data, console)
    try:
        members_max = members + 1000
        if made:
            start.found["made"] = enroll(data, members, lots, ids_max, console)
            console.print(f"made: {start.found['made']}")
            if start.found["made"]["refused"]:
                console.print("[yellow]some were refused, as ids came faster than the disk took them: a few members have fewer lots[/]")
        elif snapshot.paths(data):
            sizes = newest(data).head
            members_max, ids_max = sizes["members_max"], sizes["ids_max"]
        start.run(members_max, ids_max, warm, cold)
    except (ServiceFailed, TargetError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    start.judge()
    console.print(table(start.rows))
    target = json_file or (folder.with_name(folder.name + ".json") if made else data.with_name(data.name + ".start.json"))
    target.write_text(json.dumps({"machine": about, "program": PROGRAM.name, "rows": start.rows, **start.found}, indent=1) + "\n")
    console.print(f"all figures: {target}")
    if made and not keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--part", directory, members_text, ids_text]:
            write_snapshot(Path(directory), int(members_text), int(ids_text))
        case _:
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command("start")(main)
            app()
