"""The HTTP port: what happened is what /metrics says, and docs/metrics.md and deploy/ name exactly what exists."""

from __future__ import annotations

import json
import re
import socket
import urllib.error

import grpc
import pytest

from tests import till
from tests.running import ROOT, RunningServer

CALL_S = 60


def spoken(page: str) -> dict[str, str]:
    """Metric name (as its samples have it, without _bucket, _sum, _count) -> type."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))


def test_counts_follow_the_calls(server: RunningServer) -> None:
    for _ in range(5):
        request = till.earn("card-1", 1000)
        server.stub.EarnPoints(request, timeout=CALL_S)
    server.stub.EarnPoints(request, timeout=CALL_S)  # a repeat
    server.control_stub.GetBalance(till.balance_of("card-1"), timeout=CALL_S)
    with pytest.raises(grpc.RpcError):
        server.stub.GetBalance(till.balance_of("nobody"), timeout=CALL_S)
    got = server.metrics()
    assert got['ledger_calls_total{method="EarnPoints",outcome="OK",port="checkout"}'] == 6
    assert got['ledger_calls_total{method="GetBalance",outcome="OK",port="control"}'] == 1
    assert got['ledger_calls_total{method="GetBalance",outcome="MEMBER_NOT_FOUND",port="checkout"}'] == 1
    assert got['ledger_calls_total{method="BurnPoints",outcome="OK",port="checkout"}'] == 0, "known series begin at 0"
    assert got['ledger_call_duration_seconds_count{method="EarnPoints",port="checkout"}'] == 6
    assert got['ledger_issued_points{wallet="points"}'] == got['ledger_outstanding_points{wallet="points"}'] == 250
    assert (got["ledger_members"], got["ledger_identifiers"], got["ledger_request_ids"]) == (1, 1, 5)
    assert got["ledger_journal_sequence"] == got["ledger_journal_durable_sequence"] == 6
    assert got["ledger_group_entries_sum"] == got["ledger_group_entries_count"]
    assert got["ledger_flush_duration_seconds_count"] == got["ledger_group_entries_count"] >= 5
    assert 0 < got["ledger_flush_duration_seconds_sum"] < 60
    assert got['ledger_repeat_reads_total{found="memory"}'] + got['ledger_repeat_reads_total{found="journal"}'] == 1
    assert got['ledger_gate_closed{cause="disk_space"}'] == got['ledger_clock_alarm{cause="step"}'] == 0
    assert got["process_resident_memory_bytes"] > 1 << 20


def test_buckets_are_cumulative_and_in_seconds(server: RunningServer) -> None:
    server.stub.EarnPoints(till.earn("card-1"), timeout=CALL_S)
    buckets = [(float(bound), value) for name, value in server.metrics().items()
               if (bound := (re.match(r'ledger_call_duration_seconds_bucket\{le="([^"]+)",method="EarnPoints",port="checkout"\}', name)
                             or [None, None])[1])]
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1] == (float("inf"), 1.0)
    assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
    assert buckets[0][0] <= 1e-5 and 1 <= buckets[-2][0] <= 60


def test_rules_are_counted_by_name(server: RunningServer) -> None:
    for _ in range(3):
        server.stub.EarnPoints(till.earn("card-1", 1000), timeout=CALL_S)
    got = server.metrics()
    rules = {name: value for name, value in got.items() if name.startswith("ledger_rule_")}
    assert rules['ledger_rule_receipts_total{rule="Base points"}'] == got["ledger_evaluated_receipts_total"] == 3
    points = got['ledger_issued_points{wallet="points"}']
    assert rules['ledger_rule_points_total{rule="Base points",wallet="points"}'] == points == 150
    info = [name for name in got if name.startswith("ledger_program_info")]
    assert len(info) == 1 and re.search(r'hash="[0-9a-f]{16}",name="Base",version="1"', info[0]), info
    assert got["ledger_program_rules"] == 1 and got["ledger_program_image_bytes"] > 0
    assert got['ledger_rules_refused_receipts_total{reason="absurd_amount"}'] == got['ledger_receipt_notices_total{kind="sku"}'] == 0
    assert got["ledger_counters_room"] > 0 and got["ledger_campaigns"] == 0 < got["ledger_campaigns_max"]


def test_docs_list_every_metric_and_no_other(server: RunningServer) -> None:
    exists = spoken(server.get("/metrics"))
    page = (ROOT / "docs" / "metrics.md").read_text().partition("\n## The follower\n")[0]
    documented = dict(re.findall(r"^\| `(ledger_\w+)` \| (\w+) \|", page, re.M))
    assert documented == {name: kind for name, kind in exists.items() if name.startswith("ledger_")}


def test_alarms_and_dashboard_use_metrics_that_exist(server: RunningServer) -> None:
    exists = set(spoken(server.get("/metrics")))
    used = (ROOT / "deploy" / "prometheus-rules.yaml").read_text() + (ROOT / "deploy" / "grafana-dashboard.json").read_text()
    for name in set(re.findall(r"\b(?:ledger|process)_[a-z_]+\b", used)):
        assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & exists, f"{name} does not exist"
    assert json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())["panels"]


def test_the_other_pages(server: RunningServer) -> None:
    assert "/metrics" in server.get("/")
    assert server.get("/healthz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError) as lost:
        server.get("/nothing")
    assert lost.value.code == 404


def test_a_silent_scraper_is_harmless(server: RunningServer) -> None:
    """With silent connections beside it a scrape is answered (a blocked port would be a time-out)."""
    silent = [socket.create_connection(("127.0.0.1", server.ports["http"])) for _ in range(20)]
    for _ in range(20):
        server.get("/metrics")
    for connection in silent:
        connection.close()
