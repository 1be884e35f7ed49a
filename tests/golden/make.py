"""Makes golden data directories: `python -m tests.golden.make v2 shop` writes tests/golden/v2-killed, -stopped, -restored and -back-up,
`python -m tests.golden.make v2 runs` writes tests/golden/v2-runs.

Run it once when the format gains something (new entry kinds, new files) and commit what it made beside the older ones: those are never made
again, for they are what older programs wrote. Not for reading them (tests/test_golden.py).

Each folder holds `files.tar.xz` (a data directory, or a back-up), `program.yaml` and `expected.json`: what was true when it was made.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from ledger import errors, limits
from ledger.backup import back_up
from ledger.restore import restore
from ledger.verify import verify
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.running import RunningServer
from tests.test_two_ports import random_requests

HERE = Path(__file__).resolve().parent
START_US = 1_790_000_000_000_000
SEED = 1
REQUESTS = 300
KEPT_ANSWERS = 40
RUNS_IDS_MAX = 40  # so few that memory has dropped most of the ids
CARDS = [f"card-{number}" for number in range(8)]
PROGRAM = """\
programme: Golden
currency: USD
zone: Europe/Warsaw
anonymous_accounts: true
max_age: 400 days
wallets:
  - name: points
  - name: bonus
  - name: stamps
    scale: 1
funders:
  brewery: 7
rules:
  - name: base
    for_every_full: 1.00
    give: 5
    points_live: 2 months
  - name: quick
    for_every_full: 2.00
    give: 1
    points_live: 3 days
  - name: bonus
    for_every_full: 0.50
    give: 3
    to_wallet: bonus
    points_live: 10 days
    available_after: 2 days
    funder: brewery
    caps: [{points: 20000, per: month}]
limits:
  - {name: Receipts, of: earns, per: member, window: day, at_most: 1000, gives_back: true, then: refuse}
  - {name: Holds, of: reservations, measure: points, per: member, window: week, at_most: 400, gives_back: true, then: refuse}
  - {name: Brought back, of: returns, per: store, window: day, at_most: 3, then: mark}
"""


def plain(message: Any) -> str:
    return message.SerializeToString(deterministic=True).hex()


def ask(server: RunningServer, method: str, message: Any) -> dict[str, Any]:
    """One call, and what it gave, as it is kept."""
    kept = {"method": method, "request": plain(message)}
    try:
        return {**kept, "answer": plain(getattr(server.stub, method)(message, timeout=60))}
    except grpc.RpcError as error:
        reason = till.reason_of(error)
        assert reason is not None, error
        return {**kept, "reason": reason[0]}


def balances(server: RunningServer) -> dict[str, Any]:
    return {card: {wallet.wallet: [wallet.posted_points, wallet.available_points, wallet.pending_points, wallet.reserved_points]
                   for wallet in server.stub.GetBalance(till.balance_of(card), timeout=60).wallets} for card in CARDS}


def live(server: RunningServer) -> list[dict[str, Any]]:
    """Some days of a small shop: every kind of entry, refusals, expiries. Ends without a stop, the last groups in the tail."""
    at, asked, held = START_US, [], []
    chosen = random.Random(SEED)
    for i, (method, message) in enumerate(random_requests(SEED, REQUESTS, START_US)):
        if i == REQUESTS // 2:
            at += 4 * 86_400_000_000
            server.set_clock(at)
            until = time.monotonic() + 60
            while server.metrics()["ledger_expired_lots_entries_total"] == 0:  # the sweep comes round
                assert time.monotonic() < until
                time.sleep(0.01)
            server.restart()  # with a DIGEST entry
        message.sent_time.CopyFrom(till.timestamp(at))
        if hasattr(message, "receipt") and message.HasField("receipt"):
            message.receipt.key.business_day = till.business_day(at)
        if method == "ReturnReceipt":
            message.receipt_key.business_day = till.business_day(at)
        if method in ("CaptureReservation", "ReleaseReservation") and held and chosen.random() < 0.7:
            message.reservation_id, card, points = held.pop(0) if chosen.random() < 0.8 else held[-1]
            message.member.card = card
            if method == "CaptureReservation":
                message.points = points
        at += chosen.choice([1_000, 400_000, 2_000_000])
        server.set_clock(at)
        asked.append(ask(server, method, message))
        if method == "ReservePoints" and "answer" in asked[-1]:
            answer = ledger_pb2.ReservePointsResponse.FromString(bytes.fromhex(asked[-1]["answer"]))
            held.append((answer.reservation.reservation_id, message.member.card, message.points))
    for number in range(20):
        message = till.earn(chosen.choice(CARDS), 100 + number, at=at, request_id=f"golden-last-{number:04d}")
        asked.append(ask(server, "EarnPoints", message))
    return asked


def pack(folder: Path, source: Path, expected: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "program.yaml").write_text(PROGRAM)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    with tarfile.open(folder / "files.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.name != "lock.mdb":
                info = archive.gettarinfo(path, str(path.relative_to(source)))
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                with path.open("rb") as file:
                    archive.addfile(info, file)


def facts(path: Path, key: bytes) -> dict[str, Any]:
    report = verify(path, key=key)
    kinds = {str(kind): number for kind, number in report.totals["kinds"].items()}
    totals = {**report.totals, "digest": report.totals["digest"].hex(), "kinds": kinds}
    return {"head": report.head, "directory": report.directory, "tail_groups": report.tail_groups, "totals": totals}


def new_folders(version: str, *what: str) -> list[Path]:
    names = [HERE / f"{version}-{one}" for one in what]
    there = [str(path) for path in names if path.exists()]
    if there:
        raise SystemExit(f"{', '.join(there)} exists already: golden directories are never made again, choose the next version")
    return names


def make_runs(version: str) -> None:
    """A directory whose ids/ holds runs: most answers that are kept can only be given with them."""
    folder_made, = new_folders(version, "runs")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "program.yaml").write_text(PROGRAM)
        server = RunningServer(folder / "server", program=folder / "program.yaml", clock=START_US,
                               arguments=("--members-max", "1000", "--ids-max", str(RUNS_IDS_MAX))).start()
        chosen, at, asked = random.Random(SEED), START_US, []
        while len(asked) < REQUESTS:
            at += 1_000_000
            server.set_clock(at)
            message = till.earn(chosen.choice(CARDS), chosen.randrange(1, 9000), at=at, request_id=f"golden-runs-{len(asked):04d}")
            one = ask(server, "EarnPoints", message)
            if one.get("reason") != "IDS_BEHIND":
                asked.append(one)
        shown = balances(server)
        server.terminate()
        key = bytes.fromhex((server.data / "identity.key").read_text())
        pack(folder_made, server.data, {**facts(server.data, key), "clock_us": at, "balances": shown, "refused": [],
                                        "asked": chosen.sample(asked, KEPT_ANSWERS)})
    print(folder_made, (folder_made / "files.tar.xz").stat().st_size, "bytes")


def make_shop(version: str) -> None:
    names = new_folders(version, "killed", "stopped", "restored", "back-up")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "program.yaml").write_text(PROGRAM)
        server = RunningServer(folder / "server", program=folder / "program.yaml", clock=START_US).start()
        asked = live(server)
        shown = balances(server)
        server.kill()
        key = bytes.fromhex((server.data / "identity.key").read_text())
        clock_us = int.from_bytes(server.clock_file.read_bytes(), "little")
        kept = random.Random(SEED).sample([one for one in asked if "answer" in one], KEPT_ANSWERS)
        refused = [one for one in asked if "reason" in one and errors.BY_NAME[one["reason"]].remembered]
        common = {"clock_us": clock_us, "balances": shown, "asked": kept, "refused": refused}
        killed = {**facts(server.data, key), **common}
        if not killed["tail_groups"]:
            raise SystemExit("the drain was quicker than the kill: run this again")
        shutil.copytree(server.data, folder / "killed")
        back_up(server.data, folder / "copy", bytes_per_s=0, file_bytes=20_000)
        restore(folder / "copy", folder / "restored", server.data / "identity.key", tail_bytes=limits.TAIL_BYTES_MIN)
        server.start()
        server.terminate()
        pack(names[0], folder / "killed", killed)
        pack(names[1], server.data, {**facts(server.data, key), **common})
        pack(names[2], folder / "restored", {**facts(folder / "restored", key), **common})
        pack(names[3], folder / "copy", {**facts(folder / "copy", key), **common, "key": key.hex()})
    for name in names:
        print(name, (name / "files.tar.xz").stat().st_size, "bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="v1, v2, ...")
    parser.add_argument("what", choices=("shop", "runs"))
    wanted = parser.parse_args()
    (make_runs if wanted.what == "runs" else make_shop)(wanted.version)
