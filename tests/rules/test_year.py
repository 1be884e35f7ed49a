"""A year of real receipts under every programme of programs/: the core quotes and gives what the reference says, and pandas agrees.

The receipts are those of `make run` (bench/journey.py), turned into what the tills of each programme would send. Some come days late, and
some are paid with as many points as the programme allows. Here a few households of a seeded choice; `make soak` runs all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import journey, recompute
from ledger.rules import check, reference, tree
from ledger.rules.reference import Line, Member, Receipt
from tests.rules import ours
from tests.rules.test_core import COMMIT, DAY_US, Shop

ROOT = Path(__file__).resolve().parents[2]
PROGRAMMES = [path.stem for path in ours.PROGRAMMES]
ENDS = pd.Timestamp("2027-07-10")  # so that the year has a March with its campaign, and a new year
SEED = 20_261_122
HOUSEHOLDS = 30
ARTICLES_MAX = 20_000  # those that sell best; the others are unknown to the programme
KOPECKS_PER_CENT = 60
MEMBERS_MAX, IDS_MAX = 20_000, 500_000
PAYS_EVERY, TOO_MUCH_EVERY, LATE_EVERY, LATE_DAYS = 7, 5, 31, 4


@lru_cache(maxsize=1)
def year() -> journey.Journey:
    return journey.read(ENDS)


def some_households(name: str) -> set[int]:
    """Others for each programme."""
    return set(year().receipts["household"].drop_duplicates().sort_values().sample(HOUSEHOLDS, random_state=SEED + PROGRAMMES.index(name)))


# --- what the tills of each programme send ----------------------------------------------------------------------------------

GROCERIES = {"FLUID MILK PRODUCTS": "milk", "YOGURT": "yoghurt", "CHEESE": "cheese", "BAKED BREAD/BUNS/ROLLS": "bread", "COFFEE": "coffee",
             "DIAPERS & DISPOSABLES": "diapers", "BEERS/ALES": "beer", "LIQUOR": "vodka", "CIGARETTES": "cigarettes",
             "COUPON/MISC ITEMS": "gift-card"}
POS_CODES = {"LIQUOR": "AL", "BEERS/ALES": "AL", "DOMESTIC WINE": "AL", "CIGARETTES": "TB", "LAUNDRY DETERGENTS": "HH",
             "PAPER TOWELS": "HH", "BATH TISSUES": "HH", "COUPON/MISC ITEMS": "??"}


def in_kopecks(line: Line) -> Line:
    return replace(line, amount=line.amount * KOPECKS_PER_CENT, before=line.before and line.before * KOPECKS_PER_CENT)


def as_it_is(receipt: Receipt, number: int) -> Receipt:
    return receipt


def grocery(receipt: Receipt, number: int) -> Receipt:
    """The programme knows ten articles, and most of what is sold must be one of them. Some come by app, some by a channel nobody knows."""
    def article(line: Line) -> str:
        return GROCERIES.get(line.category) or (line.sku if line.sku.endswith("7") else ("bread", "coffee", "milk")[len(line.category) % 3])

    lines = tuple(in_kopecks(replace(line, sku=article(line), weighed=line.category == "CHEESE")) for line in receipt.lines)
    return replace(receipt, lines=lines, store=str(int(receipt.store) % 4 + 1), channel=("app", "shop", "shop", "web")[number % 4])


def pos_bonus(receipt: Receipt, number: int) -> Receipt:
    lines = tuple(in_kopecks(replace(line, category=POS_CODES.get(line.category, "FD"))) for line in receipt.lines)
    codes = tuple({"MAILING-8": "TEPLO", "MAILING-18": "LETO"}.get(code, code) for code in receipt.promo_codes)
    total = sum(line.amount for line in lines)
    return replace(receipt, lines=lines, promo_codes=codes, tenders=(("bank_card", total - total // 3), ("cash", total // 3)))


def discount(receipt: Receipt, number: int) -> Receipt:
    lines = tuple(in_kopecks(replace(line, category="GC" if line.category == "COUPON/MISC ITEMS" else line.category))
                  for line in receipt.lines)
    return replace(receipt, lines=lines)


TILLS: dict[str, Callable[[Receipt, int], Receipt]] = {"grocery": grocery, "pos-bonus": pos_bonus, "discount": discount}


def programme_of(name: str, folder: Path) -> tree.Programme:
    """A programme of programs/, with the articles of the data where it has a table of them."""
    (folder / f"{name}.yaml").write_bytes((ROOT / "programs" / f"{name}.yaml").read_bytes())
    products().to_csv(folder / "dunnhumby-products.csv", index=False)
    return check.check_file(folder / f"{name}.yaml")


@lru_cache(maxsize=1)
def products() -> pd.DataFrame:
    """The articles that sold best."""
    sold = year().lines.groupby("product_id")["cents"].sum().nlargest(ARTICLES_MAX).index
    return year().products[year().products["product_id"].isin(sold)]


def receipts_of(households: set[int], zone: str, till: Callable[[Receipt, int], Receipt], *, late: bool
                ) -> Iterator[tuple[int, int, Receipt, Any]]:
    """In the order in which they come: arrival and purchase (us), the receipt, its row of the data. late: some come days later."""
    rows = year().receipts[year().receipts["household"].isin(households)]
    local = rows["local"].dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    time_us = local.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]").astype("int64")
    place = pd.Series(range(len(rows)), rows.index)
    arrival = time_us + (place % LATE_EVERY == 0) * (1 + place // LATE_EVERY % LATE_DAYS) * DAY_US * late
    rows = rows.assign(arrival=arrival, time_us=time_us, place=place).sort_values("arrival", kind="stable")
    columns = [year().lines[name].to_numpy() for name in ("product_id", "cents", "quantity", "category", "regular_cents")]
    for row in rows.itertuples():
        lines = zip(*(column[row.first_line:row.first_line + row.line_count].tolist() for column in columns), strict=True)
        made = Receipt(0, tuple(Line(str(sku), cents, quantity * 1000, category, regular if regular > cents else None)
                                for sku, cents, quantity, category, regular in lines),
                       str(row.store), promo_codes=tuple(row.codes.split()))
        made = till(made, row.place)
        yield row.arrival, row.time_us, replace(made, total=sum(line.amount for line in made.lines)), row


# --- the year ---------------------------------------------------------------------------------------------------------------


def known_of(programme: tree.Programme, household: int) -> Member:
    """What a household has told the chain: a birthday, and its favourites."""
    favourites = programme.favourites[household % 3:][:programme.favourites_at_most]
    return Member(0, 0, birthday=(household % 12 + 1, household % 28 + 1) if household % 3 else (2, 29), chosen=frozenset(favourites))


def too_much(shop: Shop, number: int, receipt: Receipt, largest: reference.BurnLimit, time_us: int) -> None:
    """One step above the largest burn is refused, and changes nothing."""
    step = next(rule.step for rule in shop.programme.burn if rule.name == largest.rule)
    request = shop.request(number, replace(receipt, burn=largest.points + step), time_us)
    assert shop.call(COMMIT, request)[0] in ("BURN_NOT_ALLOWED", "INSUFFICIENT_POINTS")


def run(programme: tree.Programme, households: set[int], till: Callable[[Receipt, int], Receipt], *, late: bool) -> pd.DataFrame:
    """Every receipt through core and reference. What each came to, in the order of the journal: what paid for it, and points by rule."""
    shop, numbers, rows = None, {}, []
    for number_of_receipt, (arrival, time_us, receipt, row) in enumerate(receipts_of(households, programme.zone, till, late=late)):
        shop = shop or Shop(programme, arrival, members_max=MEMBERS_MAX, ids_max=IDS_MAX)
        shop.now = arrival
        if row.household not in numbers:
            numbers[row.household] = len(numbers) + 1
            shop.enroll(len(numbers))
            shop.set(len(numbers), known_of(programme, row.household))
        number = numbers[row.household]
        if programme.burn and shop.members[number].receipts % PAYS_EVERY == PAYS_EVERY - 1:
            member = replace(shop.members[number], available=shop.available(number))
            largest = reference.evaluate(programme, member, receipt, time_us, shop.shared).burn_limits[0]
            if largest.points and number_of_receipt % TOO_MUCH_EVERY == 0:
                too_much(shop, number, receipt, largest, time_us)
            receipt = replace(receipt, burn=largest.points)
        result = shop.sell(number, receipt, time_us, reserves=number_of_receipt % 2 == 0)
        assert result.refused is None, (row, result.refused)
        rows.append({"basket": row.basket, "household": row.household, "date": row.date, "codes": row.codes,
                     "paid_cents": sum(result.paid), **{programme.rules[given.rule].name: given.given for given in result.given}})
    assert shop is not None
    shop.check()
    return pd.DataFrame(rows)


def see_that_all_agree(name: str, folder: Path, households: set[int]) -> None:
    programme = programme_of(name, folder)
    found = run(programme, households, TILLS.get(name, as_it_is), late=name != "dunnhumby")
    names = [rule.name for rule in programme.rules if not rule.kind.startswith("entitle")]
    assert [rule for rule in names if rule not in found] == [], "rules that gave nothing in a whole year"
    assert not programme.burn or (found["paid_cents"] > 0).sum() > len(households)
    if name == "dunnhumby":
        lines = year().lines[year().lines["basket"].isin(found["basket"])]
        pandas = recompute.recompute(found[["basket", "household", "date", "codes", "paid_cents"]], lines, products())
        pd.testing.assert_frame_equal(found.set_index("basket")[names].fillna(0).astype("int64"), pandas[names])


@pytest.mark.parametrize("name", PROGRAMMES)
def test_some_households_of_a_real_year(name: str, tmp_path: Path) -> None:
    see_that_all_agree(name, tmp_path, some_households(name))


@pytest.mark.soak
@pytest.mark.parametrize("name", PROGRAMMES)
def test_every_household_of_a_real_year(name: str, tmp_path: Path) -> None:
    see_that_all_agree(name, tmp_path, set(year().receipts["household"]))
