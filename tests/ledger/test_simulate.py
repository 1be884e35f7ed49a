"""`simulate`: the journal's receipts under another programme come to what that programme would really have given.

The judge is the core itself: the same calls made to a service that had the other programme from the beginning.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ledger import room, simulate
from ledger.export import export
from ledger.journal import read_entry
from ledger.rules import CompiledProgram, check, compile_file, lower2
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.rules.lived import BURN, DAY_US, SOURCE, START_US, Lived

SEED = random.randrange(1 << 32)
NEW = SOURCE.replace("programme: Lived", "programme: Newer").replace("name: Base, percent: 1,", "name: Base, percent: 2,") \
    .replace("{points: 20, per: month}", "{points: 35, per: month}").replace("dairy: {points: 120, uses: 50}", "dairy: {points: 900}") \
    .replace("downgrade: one step", "downgrade: to level") \
    .replace("{name: Fiver, when: {total: {from: 100.00}}, discount: 5.00}",
             "{name: Tenner, when: {total: {from: 150.00}}, discount: 10.00}")


def compiled(folder: Path, source: str) -> CompiledProgram:
    path = folder / "programme.yaml"
    path.write_text(source)
    return compile_file(path)


def lived(source: str, *, seed: int = SEED, days: int = 25) -> Lived:
    print(f"seed {seed}")
    shop = Lived(source)
    shop.everything()
    shop.days(days, seed)
    return shop


def given(shop: Lived) -> dict[str, Any]:
    """What a shop's journal says: by rule, member and in all."""
    found: dict[str, Any] = {"rules": {}, "members": {}, "discounts": 0, "receipts": 0}
    for entry in map(read_entry, shop.core.entries()):
        if entry["kind"] not in ("earn", "commit") or entry["status"]:
            continue
        found["receipts"] += 1
        for award in entry.get("awards", ()):
            name = shop.programme.rules[award["rule"] - 1].name
            found["rules"][name] = found["rules"].get(name, 0) + award["points"]
            key = entry["member"], award["wallet"]
            found["members"][key] = found["members"].get(key, 0) + award["points"]
        found["discounts"] += sum(row["amount_minor"] for row in entry.get("discounts", ()))
    return found


def test_the_programme_of_the_journal_gives_what_the_journal_gave(tmp_path: Path) -> None:
    shop = lived(SOURCE)
    made = simulate.simulate(shop.write(tmp_path / "data"), compiled(tmp_path, SOURCE))
    assert made.receipts[0] == made.receipts[1] == given(shop)["receipts"]
    assert made.cost[0] == made.cost[1] > 0 and made.discounts[0] == made.discounts[1] > 0
    assert (made.gained, made.lost, made.refusals) == (0, 0, {}) and made.burns[0] == made.burns[1] > 0
    for wallet in made.wallets:
        assert (wallet.issued[0], wallet.burned[0], wallet.expired[0]) == (wallet.issued[1], wallet.burned[1], wallet.expired[1])
    assert all(rule.points[0] == rule.points[1] for rule in made.rules)
    assert {rule.name: rule.points[1] for rule in made.rules if rule.points[1]} == given(shop)["rules"]
    assert sum(sum(row[1:]) for row in made.days) == sum(made.cost), "days add up"


def test_a_burn_counts_on_the_day_of_its_purchase(tmp_path: Path) -> None:
    """A burn that comes five days late moves points by inactivity to its own day, not to that of its coming."""
    source = SOURCE.replace("points_live: 12 months to end of month", "points_live: 30 days of inactivity")
    shop = Lived(source)
    shop.enroll(1)
    shop.enroll(2)
    shop.sell(1, [("bread", 100_000)])
    shop.now += 10 * DAY_US
    request = pb.BurnPointsRequest(member=pb.MemberRef(member_id=1), wallet="points", points=5)
    request.purchase_time.FromMicroseconds(shop.now - 5 * DAY_US)
    assert shop.call(BURN, request).wallets[0].posted_points > 0
    shop.now += 27 * DAY_US  # behind the 35th day, before the 40th
    shop.core.tick(shop.now)
    shop.sell(2, [("bread", 1000)])
    made = simulate.simulate(shop.write(tmp_path / "data"), compiled(tmp_path, source))
    assert made.wallets[0].expired[0] == made.wallets[0].expired[1] > 50, "the Welcome points and the Base points"


def test_another_programme_gives_what_it_would_have_given(tmp_path: Path) -> None:
    """Everybody does the same, and nobody burns: then both shops have the same receipts."""
    shops = []
    for source in (SOURCE, NEW):
        shop = Lived(source.replace("share: 50", "share: 0.0001"))
        shop.everything()
        shop.days(25, SEED)
        shops.append(shop)
    then, now = (given(shop) for shop in shops)
    made = simulate.simulate(shops[0].write(tmp_path / "data"), compiled(tmp_path, NEW.replace("share: 50", "share: 0.0001")))
    assert made.programme == "Newer" and made.against == "what the journal gave"
    assert {rule.name: rule.points[1] for rule in made.rules if rule.points[1]} == now["rules"] != then["rules"]
    assert {rule.name: rule.points[0] for rule in made.rules if rule.points[0]} == then["rules"]
    assert made.discounts == (then["discounts"], now["discounts"])
    for place, wallet in enumerate(made.wallets):
        assert wallet.issued == tuple(sum(points for (_, at), points in found["members"].items() if at == place) for found in (then, now))
    assert made.funders["alpina"][1] == now["rules"]["Dairy days"] * 10
    for member, _, before, after in made.member_rows:
        worth = [found["members"].get((member, 0), 0) * 10 + found["members"].get((member, 1), 0) for found in (then, now)]
        assert after - worth[1] >= 0 and before - worth[0] >= 0, "the rest are discounts"
    assert made.gained + made.lost <= made.members == 4
    assert made.gains - made.losses == made.cost[1] - made.cost[0]
    tenner = next(rule for rule in made.rules if rule.name == "Tenner")
    assert tenner.discounts[1] == tenner.receipts[1] * 1000 and tenner.discounts[0] == 0


def test_from_a_day_on_is_as_if_it_had_been_published_then(tmp_path: Path) -> None:
    old, new = (source.replace("share: 50", "share: 0.0001") for source in (SOURCE, NEW))
    shops = []
    for later in (old, new):
        shop = Lived(old)
        shop.everything()
        shop.days(8, SEED)
        moment = shop.now
        if later == new:
            shop.core.publish(lower2.lower_programme(check.check_source(new.encode())), new.encode(), moment)
        shop.days(8, SEED + 1)
        shops.append(shop)
    made = simulate.simulate(shops[0].write(tmp_path / "data"), compiled(tmp_path, new), from_us=moment)
    rules: dict[int, int] = {}
    for entry in map(read_entry, shops[1].core.entries()):
        for award in entry.get("awards", ()) if entry["program"] == 2 else ():
            rules[award["rule"]] = rules.get(award["rule"], 0) + award["points"]
    names = [rule.name for rule in check.check_source(new.encode()).rules]
    expected = {names[rule - 1]: points for rule, points in rules.items()}
    assert {rule.name: rule.points[1] for rule in made.rules if rule.points[1]} == expected
    assert moment // DAY_US <= made.first_day and made.first_day + len(made.days) <= shops[0].now // DAY_US + 1
    before = simulate.simulate(tmp_path / "data", compiled(tmp_path, new), until_us=moment)
    assert before.receipts[0] + made.receipts[0] == given(shops[0])["receipts"]


def test_a_burn_that_is_not_allowed_is_made_as_large_as_it_is(tmp_path: Path) -> None:
    shop = lived(SOURCE)
    poorer = SOURCE.replace("share: 50", "share: 1").replace("min: 5}", "min: 1}")
    made = simulate.simulate(shop.write(tmp_path / "data"), compiled(tmp_path, poorer))
    assert made.cut_burns > 0 and made.receipts[0] == made.receipts[1]
    assert 0 < made.wallets[0].burned[1] < made.wallets[0].burned[0]


def test_against_compares_two_programmes(tmp_path: Path) -> None:
    data = lived(SOURCE).write(tmp_path / "data")
    old, new = compiled(tmp_path, SOURCE), compiled(tmp_path, NEW)
    alone, both = simulate.simulate(data, new), simulate.simulate(data, new, against=old)
    assert both.against == "Lived" and both.cost == alone.cost
    assert {rule.name: rule.points for rule in both.rules if sum(rule.points)} == {
        rule.name: rule.points for rule in alone.rules if sum(rule.points)}
    assert sum(rule.discounts[0] for rule in both.rules) == sum(rule.discounts[0] for rule in alone.rules) == alone.discounts[0]
    assert np.array_equal(both.member_rows, alone.member_rows)


def test_receipts_in_parquet_files_come_to_the_same(tmp_path: Path) -> None:
    """Those of an export: nothing is set or adjusted by hand, for that is not in receipts."""
    shop = Lived()
    for number in range(1, 5):
        shop.enroll(number)
    shop.days(20, SEED)
    data = shop.write(tmp_path / "data")
    export(data, tmp_path / "days", unfinished=True)
    new = compiled(tmp_path, NEW)
    by_journal = simulate.simulate(data, new)
    by_files = simulate.simulate_receipts(sorted((tmp_path / "days").glob("*.parquet")), new, members_max=100)
    for name in ("receipts", "discounts", "cost", "gained", "lost", "gains", "losses", "most", "least", "days", "first_day", "cut_burns"):
        assert getattr(by_files, name) == getattr(by_journal, name), name
    assert [(rule.name, rule.points[1], rule.discounts[1], rule.cut) for rule in by_files.rules if rule.receipts[1]] == \
        [(rule.name, rule.points[1], rule.discounts[1], rule.cut) for rule in by_journal.rules if rule.receipts[1]]


def test_files_of_other_people_need_few_columns(tmp_path: Path) -> None:
    new = compiled(tmp_path, NEW)
    moments = pa.array([START_US + day * DAY_US for day in range(4)]).cast(pa.timestamp("us"))
    rows = {"member_id": [900, 17, 900, 900], "time": moments, "total_minor": [1000, 2000, 3000, 4000]}
    parquet.write_table(pa.table(rows), tmp_path / "few.parquet")
    made = simulate.simulate_receipts([tmp_path / "few.parquet"], new, members_max=100)
    assert (made.receipts, made.members, made.cost[0]) == ((4, 4), 2, 0)
    assert next(rule.points for rule in made.rules if rule.name == "Base") == (0, 2 + 4 + 6 + 8)
    for bad, message in (({"time": moments, "total_minor": [1] * 4}, "no column member_id"),
                         ({"member_id": [1] * 4, "time": moments}, "neither lines nor total_minor"),
                         ({**rows, "time": moments[::-1]}, "order of time"),
                         ({**rows, "member_id": ["x"] * 4, "time": [1.5] * 4}, "be read")):
        parquet.write_table(pa.table(bad), tmp_path / "bad.parquet")
        with pytest.raises(simulate.SimulationRefused, match=message):
            simulate.simulate_receipts([tmp_path / "bad.parquet"], new)


def test_other_wallets_are_refused(tmp_path: Path) -> None:
    shop = Lived()
    shop.everything()
    turned = SOURCE.replace("{name: points, worth", "{name: stars, worth")
    assert turned != SOURCE
    with pytest.raises(simulate.SimulationRefused, match="must keep their order"):
        simulate.simulate(shop.write(tmp_path / "data"), compiled(tmp_path, turned))


def test_tables_that_are_too_small_are_made_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lived(SOURCE, days=5).write(tmp_path / "data")
    whole = simulate.simulate(data, compiled(tmp_path, NEW))
    monkeypatch.setattr(room, "MEMBERS_GUESS_MIN", 1)
    monkeypatch.setattr(room, "GUESS_GROUPS", 0)
    small = simulate.simulate(data, compiled(tmp_path, NEW))
    assert small.cost == whole.cost and small.members == whole.members


def test_what_is_written_says_the_same(tmp_path: Path) -> None:
    made = simulate.simulate(lived(SOURCE).write(tmp_path / "data"), compiled(tmp_path, NEW))
    paths = simulate.write_parquet(made, tmp_path / "out")
    assert [path.name for path in paths] == ["rules.parquet", "members.parquet", "days.parquet"]
    rules, members, days = (parquet.read_table(path).to_pylist() for path in paths)
    assert sum(row["cost_after"] for row in rules) == sum(rule.cost[1] for rule in made.rules)
    assert sum(row["cost_after"] for row in members) == sum(row["cost_after"] for row in days)
    assert {row["member_id"] for row in members} == {1, 2, 3, 4} and len(days) == len(made.days)
