"""QuoteReceipt through the real checkout port, with the stock grpcio client: a quote, and the commit with its token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import errors
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.running import RunningServer
from tests.server.checkout import Port
from tests.server.peer import WAIT_S

QUOTE = 16
SOURCE = """
programme: Till
currency: USD
zone: Europe/Warsaw
anonymous_accounts: true
wallets: [{name: points}]
tiers: {levels: [{name: base}, {name: silver, reach: {receipts: 2}}]}
rules:
  - {name: Base, for_every_full: 10.00, give: 3}
  - {name: Card, when: {tier: silver}, discount_percent: 5, per: line}
burn: [{name: Half, share: 50}]
"""


class Shop:
    """A checkout port, and a till."""

    def __init__(self, folder: Path) -> None:
        program = folder / "program.yaml"
        program.write_text(SOURCE)
        self.port = Port(folder, program=program)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port.number}", [("grpc.use_local_subchannel_pool", 1)])
        self.stub = RunningServer._stub(self.channel)

    def call(self, method: str, request: Any) -> Any:
        return getattr(self.stub, method)(request, timeout=WAIT_S)

    def close(self) -> None:
        self.channel.close()
        self.port.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.close()


def quote_of(earn: Any, **fields: Any) -> Any:
    return pb.QuoteReceiptRequest(member=earn.member, receipt=earn.receipt, **fields)


def test_a_quote_and_the_commit_with_its_token(shop: Shop) -> None:
    for number in range(3):
        earn = till.earn("card-1", 4_550, lines=3)
        before = shop.port.written()
        quote = shop.call("QuoteReceipt", quote_of(earn, explain=True))
        assert shop.port.written() == before, "a quote writes nothing"
        silver = number == 2
        assert quote.member_id == (1 if number else 0)
        assert [rule.name for rule in quote.rules] == (["Card", "Base"] if silver else ["Base"])
        assert (quote.result.standing.tier, quote.result.discount_minor > 0) == ("silver" if silver else "base", silver)
        earn.receipt.quote_token, earn.receipt.only_as_quoted = quote.token, True
        answer = shop.call("EarnPoints", earn)
        assert answer.entry.awards == quote.awards and not answer.result.changed
        assert (answer.result.discounts, answer.entry.program_version) == (quote.result.discounts, quote.program_version)
    assert quote.burn_limits[0].points > 0
    assert shop.port.calls(QUOTE, "OK") == 3


def test_what_is_refused(shop: Shop) -> None:
    earn = till.earn("card-1", 4_550)
    for request, reason in ((quote_of(earn, burn=pb.Burn(points=1)), "MEMBER_NOT_FOUND"),
                            (quote_of(till.earn("card-1", -5)), "FIELD_INVALID")):
        with pytest.raises(grpc.RpcError) as refused:
            shop.call("QuoteReceipt", request)
        told = till.reason_of(refused.value)
        assert told is not None and told[0] == reason
        assert shop.port.calls(QUOTE, reason) == 1
        assert refused.value.code().value[0] == errors.BY_NAME[reason].grpc_code
