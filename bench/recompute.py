"""What programs/dunnhumby.yaml gives for a year of receipts, computed once more: by pandas, in whole cents, from docs/rules.md.

It shares nothing with the ledger: neither code nor the programme's file, whose numbers are written here a second time. Where the service
takes one receipt after the other, this takes one rule after the other over all receipts. The order in which receipts were decided is
given, because the campaign's last points go to whoever comes first. Used by bench/demo.py; tests/rules/test_year.py holds it against the
reference interpreter.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

NO_POINTS_DEPARTMENTS = ["FUEL", "MISCELLANEOUS", "SPIRITS"]
NO_POINTS_CATEGORIES = [
    "GROCERY/BEERS/ALES", "GROCERY/LIQUOR", "GROCERY/DOMESTIC WINE", "GROCERY/IMPORTED WINE", "GROCERY/MISC WINE",
    "DRUG GM/CIGARETTES", "DRUG GM/CIGARS", "DRUG GM/TOBACCO OTHER",
]
BABY = ["DRUG GM/DIAPERS & DISPOSABLES", "DRUG GM/INFANT FORMULA", "DRUG GM/BABY FOODS"]
COUPONS = ["MAILING-8", "MAILING-13", "MAILING-18", "MAILING-27"]
FRESH_POINTS, FRESH_BUDGET, FRESH_USES_A_MONTH, FRESH_FROM_CENTS = 50, 100_000, 4, 10_00
GRILL_YEARS = 2025, 2030
TIER_DAYS, GRACE_DAYS = 90, 30
PLUS_RECEIPTS, PLUS_CENTS, PRIME_CENTS = 10, 500_00, 1500_00
MEMBER, PLUS, PRIME = 0, 1, 2


def recompute(receipts: pd.DataFrame, lines: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Points by receipt (index: basket) and rule (columns: its name).

    receipts, in the order of their decision: basket, household, date (of the store, without a time), codes (presented, separated by
    spaces), paid_cents (paid with points). lines, each receipt's in its order: basket, product_id, cents. products: product_id,
    department, product_category, brand.
    """
    receipts = receipts.set_index("basket")
    lines = lines_that_earn(lines, products)

    def per_receipt(amounts: pd.Series, of: pd.Series | None = None) -> pd.Series:
        """The sum over a receipt's lines (of those that are meant)."""
        kept = amounts if of is None else amounts[of]
        return kept.groupby(lines["basket"]).sum().reindex(receipts.index, fill_value=0)

    # What is paid with points comes off the lines that can be paid with points: here the same that earn points. The rest is money.
    money = lines["cents"] - share(receipts["paid_cents"], lines["cents"], lines["basket"])
    total = per_receipt(money)
    household, date = receipts["household"], receipts["date"]
    month = date.dt.year * 12 + date.dt.month
    week = (date - pd.to_timedelta(date.dt.day_of_week, unit="D"))  # its Monday
    meat = lines["department"].isin(["MEAT", "SEAFOOD"])
    grill = lines["department"].isin(["MEAT", "MEAT-PCKGD"])
    points: dict[str, pd.Series] = {}

    points["Base points"] = base = total // 100 * 5
    base_of_line = share(base, money, lines["basket"])
    points["Produce"] = capped(per_receipt(base_of_line, lines["department"] == "PRODUCE"), 500, household, month)
    points["Baby"] = capped(per_receipt(base_of_line, lines["category"].isin(BABY)) * 2, 1000, household, month)
    points["Own brand"] = capped(per_receipt(base_of_line, lines["brand"] == "Private") // 2, 300, household, month)

    fresh = date.dt.day_of_week.isin([4, 5]) & (per_receipt(lines["cents"], meat) >= FRESH_FROM_CENTS)
    fresh = FRESH_POINTS * first_uses(fresh, FRESH_USES_A_MONTH, household, month)
    taken_before = fresh.cumsum() - fresh  # by all households together
    points["Fresh fish and meat"] = np.minimum(fresh, (FRESH_BUDGET - taken_before).clip(lower=0))

    grill_week = ((date.dt.month == 6) & (date.dt.day >= 28)) | ((date.dt.month == 7) & (date.dt.day < 5))
    grill_week &= date.dt.year.between(*GRILL_YEARS)
    five_percent = (per_receipt(money, grill) * 5 * 2 + 100) // 200  # half up
    points["Grill week"] = five_percent.clip(upper=150).where(grill_week, 0)

    presented = receipts["codes"].str.split().apply(lambda codes: any(code in COUPONS for code in codes))
    has_lines = per_receipt(pd.Series(1, lines.index)) > 0  # a receipt of nothing but fuel gives nothing
    points["Coupon"] = 100 * first_uses(presented & has_lines, 1, household, week)
    points["Welcome"] = 200 * ((receipts.groupby("household").cumcount() == 0) & has_lines)

    tier = tiers(household, date, total)
    points["Plus"] = capped((total // 100).where(tier == PLUS, 0), 2000, household, month)
    points["Prime"] = capped((total * 2 // 100).where(tier == PRIME, 0), 5000, household, month)
    return pd.DataFrame(points).astype("int64")


def lines_that_earn(lines: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """The lines of goods that are not under `no_points_on`, with department, category (a path) and brand of their articles."""
    lines = lines.drop(columns="category", errors="ignore").merge(products, on="product_id", how="left", validate="many_to_one")
    department = lines["department"].fillna("")
    category = department + "/" + lines["product_category"].fillna("")
    earns = ~department.isin(NO_POINTS_DEPARTMENTS) & ~category.isin(NO_POINTS_CATEGORIES) & (lines["cents"] > 0)
    return lines.assign(department=department, category=category)[earns]


def share(amounts: pd.Series, weights: pd.Series, basket: pd.Series) -> pd.Series:
    """Each receipt's amount shared among its lines pro rata to their weights: whole units, largest remainder, ties to the earlier line."""
    amount = basket.map(amounts)
    of_all = weights.groupby(basket).transform("sum").clip(lower=1)
    whole, rest = amount * weights // of_all, amount * weights % of_all
    left = amount - whole.groupby(basket).transform("sum")
    place = (-rest).groupby(basket).rank(method="first") - 1  # 0: the largest remainder
    return (whole + (place < left)).astype("int64")


def capped(wanted: pd.Series, limit: int, household: pd.Series, window: pd.Series) -> pd.Series:
    """At most so many points for a household in each window: the rest up to the cap is given."""
    sums = wanted.groupby([household, window]).cumsum()
    return sums.clip(upper=limit) - (sums - wanted).clip(upper=limit)


def first_uses(applies: pd.Series, uses: int, household: pd.Series, window: pd.Series) -> pd.Series:
    """1 for the first so many receipts of a household and window on which the rule applies, else 0."""
    number = applies.astype(int).groupby([household, window]).cumsum()
    return (applies & (number <= uses)).astype(int)


def tiers(household: pd.Series, date: pd.Series, spent: pd.Series) -> pd.Series:
    """The tier of each receipt's household before it."""
    day = date.to_numpy().astype("datetime64[D]").astype(int)
    found = pd.Series(MEMBER, household.index)
    for places in household.groupby(household).indices.values():
        found.iloc[places] = tiers_of_one(day[places], spent.to_numpy()[places])
    return found


def tiers_of_one(days: np.ndarray, spent: np.ndarray) -> list[int]:
    """The tier before each of a household's receipts. In ninety days a level is reached until its oldest receipt that matters falls out."""
    spent_so_far = np.concatenate(([0], np.cumsum(spent)))

    def reached_until(receipt: int) -> tuple[int, int]:
        """The first days on which plus and prime are no longer reached if no receipt comes behind this one."""
        def by_money(cents: int) -> int:
            oldest = np.searchsorted(spent_so_far, spent_so_far[receipt + 1] - cents, side="right") - 1
            return days[oldest] + TIER_DAYS if oldest >= 0 else 0

        by_receipts = days[receipt - PLUS_RECEIPTS + 1] + TIER_DAYS if receipt + 1 >= PLUS_RECEIPTS else 0
        return max(by_receipts, by_money(PLUS_CENTS)), by_money(PRIME_CENTS)

    before, tier, held_until = [], MEMBER, 0
    for receipt, today in enumerate(days):
        while tier > MEMBER and today >= held_until:  # one step down, for ninety days and thirty of grace
            tier, held_until = tier - 1, held_until + TIER_DAYS + GRACE_DAYS
        before.append(tier)
        plus, prime = reached_until(receipt)
        reached = PRIME if prime > today else PLUS if plus > today else MEMBER
        if reached > tier:
            tier, held_until = reached, today
        if tier > MEMBER and reached >= tier:
            held_until = max(held_until, (plus, prime)[tier - 1] + GRACE_DAYS)
    return before
