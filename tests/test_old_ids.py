"""The whole service with hardly any memory for ids: what was answered long ago is answered again the same, on both ports, for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.running import RunningServer

IDS_MAX = 20
HOUR = 3_600_000_000


def send(stub: Any, method: str, request: Any) -> Any:
    """Asked again while the ids are behind; any other refusal is raised."""
    while True:
        try:
            return getattr(stub, method)(request, timeout=60)
        except grpc.RpcError as error:
            if till.reason_of(error) != ("IDS_BEHIND", {}):
                raise


def test_repeats_from_long_ago_get_the_first_answer_on_both_ports_and_after_restarts(new_server: Callable[..., RunningServer]) -> None:
    server = new_server(arguments=("--members-max", "1000", "--ids-max", str(IDS_MAX)))
    server.start()
    sent = []
    for number in range(100):
        lines = 400 if number % 25 == 3 else 2  # a request that does not fit a stream's own buffer
        request = till.earn(f"card-{number % 9}", 500 + number, at=till.now_us() - number % 5 * HOUR, lines=lines)
        sent.append(("EarnPoints", request, send(server.stub if number % 2 else server.control_stub, "EarnPoints", request)))
        if number % 10 == 0:
            burn = till.request("BurnPoints", card=f"card-{number % 9}", points=10**9)
            try:
                send(server.stub, "BurnPoints", burn)
            except grpc.RpcError as error:
                sent.append(("BurnPoints", burn, till.reason_of(error)))

    def ask_all_again() -> None:
        for index, (method, request, first) in enumerate(sent):
            for stub in (server.stub, server.control_stub)[index % 2:]:
                try:
                    again = getattr(stub, method)(request, timeout=60)
                except grpc.RpcError as error:
                    name, told = till.reason_of(error)
                    assert (name, told.pop("replayed")) == ("INSUFFICIENT_POINTS", "true")
                    assert (name, told) == first
                    continue
                assert again.replayed and again.entry == first.entry and again.wallets == first.wallets
        earned = [(request, first) for method, request, first in sent if method == "EarnPoints"]
        batch = ledger_pb2.BatchPostRequest(commands=[ledger_pb2.PostCommand(earn=request) for request, _ in earned])
        for stub in (server.stub, server.control_stub):
            for result, (_, first) in zip(stub.BatchPost(batch, timeout=60).results, earned, strict=True):
                entry = type(first.entry)()
                entry.CopyFrom(first.entry)
                entry.ClearField("awards")
                assert result.replayed and result.entry == entry

    ask_all_again()
    samples = server.metrics()
    assert samples["ledger_ids_runs"] > 10 and samples["ledger_ids_lookups_total"] > 100
    assert samples["ledger_ids_lookup_duration_seconds_count"] == samples["ledger_ids_lookups_total"]
    assert samples["ledger_parked_calls"] == samples["ledger_ids_unreadable_lookups_total"] == 0
    sequence = samples["ledger_journal_sequence"]
    for kill in (True, False):
        server.restart(kill=kill)
        ask_all_again()
        assert server.metrics()["ledger_journal_sequence"] <= sequence + 2  # digests
