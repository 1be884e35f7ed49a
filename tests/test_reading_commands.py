"""`daybook follow`, `index` and `export` as a person meets them: the services that are there, the pages, the refusals, a rebuilt index."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pyarrow import parquet

from server._pb.loyalty.ledger.v1 import journal_pb2, journal_pb2_grpc
from tests import till
from tests.ledger import forging
from tests.reading import wait_for
from tests.running import ROOT

DAY_US = 86_400_000_000


def daybook(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "140", "NO_COLOR": "1"})


def one_message(done: subprocess.CompletedProcess[str], code: int, pattern: str) -> None:
    """A clear end: this code, this message, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(pattern, done.stderr), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three days of earns of ten members: the programme, then 90 entries."""
    forge = forging.Forge()
    forge.add(forging.program_entry())
    for number in range(90):
        time_us = forging.TIME_US + number // 30 * DAY_US
        forge.add(forging.earn(1 + number % 10, 100, opened=number < 10, request=number + 1, time_us=time_us))
    return forge.write(tmp_path / "data")


@pytest.fixture
def follower(data: Path, tmp_path: Path) -> Iterator[dict[str, int]]:
    """The ports of a follower of `data`."""
    ports_file = tmp_path / "ports.json"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "server", "follow", str(data), "--control", "127.0.0.1:0",
                                    "--http", "127.0.0.1:0", "--ports-file", str(ports_file), "--members-max", "1000", "--ids-max", "9000"],
                                   cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: ports_file.exists() or process.poll() is not None, "the follower's start")
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield json.loads(ports_file.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


def test_the_follower_lists_and_counts(follower: dict[str, int], data: Path) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{follower['control']}") as channel:
        stub = journal_pb2_grpc.JournalServiceStub(channel)

        def caught_up() -> journal_pb2.ListEntriesResponse | None:
            try:
                answer = stub.ListEntries(journal_pb2.ListEntriesRequest(member={"member_id": 3}))
            except grpc.RpcError as error:
                assert till.reason_of(error)[0] in ("NOT_READY", "MEMBER_NOT_FOUND", "INDEX_NOT_READY")
                return None
            return answer if answer.head.sequence == 91 else None

        answer = wait_for(caught_up, "the end of the journal")
        assert [entry.entry.sequence for entry in answer.entries] == list(range(84, 0, -10))
        with pytest.raises(grpc.RpcError):
            stub.ListEntries(journal_pb2.ListEntriesRequest(page_size=-1))
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="loyalty.ledger.v1.JournalService"))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.WatchEntries(journal_pb2.WatchEntriesRequest(from_sequence=1))
        next(watch)

        def samples() -> dict[str, float]:
            page = urllib.request.urlopen(f"http://127.0.0.1:{follower['http']}/metrics", timeout=60).read().decode()
            return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}

        wait_for(lambda: samples()["ledger_feed_entries_total"] >= 91, "the sent entries on the metrics page")
        watch.cancel()  # not before: what is cancelled while it is being sent is not counted
        seen = samples()
        assert seen['ledger_reads_total{method="ListEntries",outcome="OK"}'] >= 1
        assert seen['ledger_reads_total{method="ListEntries",outcome="FIELD_INVALID"}'] == 1
        assert seen["ledger_index_sequence"] == 91 and seen["ledger_index_lag_entries"] == 0
        assert seen["ledger_index_memory_bytes"] > 90 * 16
    done = daybook("index", str(data))
    one_message(done, 2, r"has a follower already(.|\n)*remove DIR/index")


def test_the_index_command_builds_checks_and_rebuilds(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["--rebuild"]):
        done = daybook("index", str(data), *arguments)
        assert done.returncode == 0, done.stderr
        assert "the index is complete" in done.stdout and re.search(r"entries +│ 91 ", done.stdout)
    (data / "index" / f"{1:016d}-{91:016d}.index").write_bytes(b"rot" * 5000)
    done = daybook("index", str(data))
    assert done.returncode == 0 and "passed over" in done.stdout and re.search(r"1 were damaged", done.stdout)
    one_message(daybook("index", str(data / "nothing")), 2, "FOLLOW.LOCK cannot be opened")


def test_the_export_command_writes_days_and_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "days"
    done = daybook("export", str(data), "--to", "parquet", "--out", str(out))
    assert done.returncode == 0 and re.search(r"written now +│ 61 entries", done.stdout), done.stderr
    done = daybook("export", str(data), "--out", str(out))
    assert "no further day is finished" in done.stdout
    done = daybook("export", str(data), "--out", str(out), "--all")
    assert done.returncode == 0 and ".part.parquet" in done.stdout
    assert sum(parquet.read_metadata(path).num_rows for path in out.iterdir()) == 91
    one_message(daybook("export", str(tmp_path / "nothing"), "--out", str(out)), 1, "is not a ledger's data directory")
    next(out.iterdir()).write_bytes(b"rot")
    one_message(daybook("export", str(data), "--out", str(out)), 1, "remove it, and a new run writes it again")


@pytest.mark.parametrize("command", ["index", "export", "follow"])
def test_help_teaches_with_an_example(command: str) -> None:
    done = daybook(command, "--help")
    assert done.returncode == 0 and f"Example: daybook {command}" in done.stdout
