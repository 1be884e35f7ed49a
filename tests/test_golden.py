"""Data directories and back-ups that older programs wrote open for ever: recovery, digest, sums, balances and first answers as noted then.

tests/golden/make.py makes new ones beside the old ones; a folder here is never changed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import limits
from ledger.journal import read_entry, scan, tail_groups
from ledger.restore import restore
from ledger.verify import parse_head, verify
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.running import RunningServer

GOLDEN = Path(__file__).resolve().parent / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("v*/expected.json"))
NewServer = Callable[..., RunningServer]


def unpack(folder: Path, to: Path) -> dict[str, Any]:
    with tarfile.open(folder / "files.tar.xz") as archive:
        archive.extractall(to, filter="data")
    if (to / "identity.key").exists():
        (to / "identity.key").chmod(0o600)
    return json.loads((folder / "expected.json").read_text())


def check_verified(path: Path, expected: dict[str, Any]) -> None:
    report = verify(path, expect=parse_head(expected["head"]))
    kinds = {str(kind): number for kind, number in report.totals["kinds"].items()}
    totals = {**report.totals, "digest": report.totals["digest"].hex(), "kinds": kinds}
    assert (report.head, report.directory, report.tail_groups) == (expected["head"], expected["directory"], expected["tail_groups"])
    for name, value in expected["totals"].items():  # later versions may count more, never otherwise
        if name == "wallets":
            assert all(totals[name][wallet].items() >= points.items() for wallet, points in value.items())
        else:
            assert totals[name] == value, name


def check_served(server: RunningServer, expected: dict[str, Any]) -> None:
    """Balances as they were, first answers to repeated requests, the same refusals."""
    for card, wallets in expected["balances"].items():
        answer = server.stub.GetBalance(till.balance_of(card), timeout=60)
        assert {wallet.wallet: [wallet.posted_points, wallet.available_points, wallet.pending_points, wallet.reserved_points]
                for wallet in answer.wallets} == wallets, card
    for one in [*expected["asked"], *expected["refused"]]:
        request = getattr(ledger_pb2, f"{one['method']}Request").FromString(bytes.fromhex(one["request"]))
        if "answer" in one:
            answer = getattr(server.stub, one["method"])(request, timeout=60)
            first = type(answer).FromString(bytes.fromhex(one["answer"]))
            assert answer.replayed
            first.replayed = True
            assert answer == first
        else:
            with pytest.raises(grpc.RpcError) as refused:
                getattr(server.stub, one["method"])(request, timeout=60)
            assert till.reason_of(refused.value)[0] == one["reason"]


def serve(new_server: NewServer, data: Path, folder: Path, expected: dict[str, Any]) -> RunningServer:
    server = new_server(directory=data.parent, program=folder / "program.yaml", clock=expected["clock_us"])
    assert server.data == data
    return server.start()


def test_there_are_golden_directories_of_every_shape() -> None:
    assert {path.name for path in FOLDERS} >= {"v1-killed", "v1-stopped", "v1-restored", "v1-back-up", "v1-runs", "v2-runs", "v3-killed",
                                               "v3-stopped", "v3-restored", "v3-back-up"}
    kinds = {kind for folder in FOLDERS for kind in json.loads((folder / "expected.json").read_text())["totals"]["kinds"]}
    assert kinds >= {str(kind) for kind in (*range(1, 10), 19, 20, 21, 22)}


@pytest.mark.parametrize("folder", FOLDERS, ids=[path.name for path in FOLDERS])
def test_a_golden_directory_opens_for_ever(folder: Path, tmp_path: Path, new_server: NewServer) -> None:
    data = tmp_path / "server" / "data"
    if "back-up" in folder.name:
        expected = unpack(folder, tmp_path / "copy")
        check_verified(tmp_path / "copy", expected)
        (tmp_path / "key").write_text(expected["key"])
        (tmp_path / "key").chmod(0o600)
        restore(tmp_path / "copy", data, tmp_path / "key", tail_bytes=limits.TAIL_BYTES_MIN)
    else:
        expected = unpack(folder, data)
        check_verified(data, expected)
        for group in [*scan(data), *tail_groups(data)]:
            for sequence, entry in group:
                read_entry(entry, where=f"entry {sequence}")
    server = serve(new_server, data, folder, expected)
    check_served(server, expected)
    assert ("runs" in folder.name) == (server.metrics()["ledger_ids_lookups_total"] > 20), "those answers come out of runs"
    new = server.stub.EarnPoints(till.earn("card-0", at=expected["clock_us"]), timeout=60)
    assert new.entry.sequence > expected["totals"]["sequence"]
    older = folder.name.startswith(("v1-", "v2-"))
    assert (new.entry.program_version > 1) == older, "the image of version 1 that ruled there was replaced at start"
    server.terminate()
    verify(server.data, expect=parse_head(expected["head"]))


def test_an_archive_is_small() -> None:
    for folder in FOLDERS:
        assert (folder / "files.tar.xz").stat().st_size < 300_000, "golden directories are cloned by everybody"
