"""A checked programme of image version 1: what a YAML file means once everything in it has been found right.

Not for text and line numbers (`syntax.py`) nor for bytes (`lower.py`). Made by `check_v1.py`; read by `lower.py`,
`reference_v1.py` and whoever describes a programme to people. Goes when images of version 2 are in the service (`tree.py` is their model).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class LifeUnit(IntEnum):
    """How the life of points is counted. Values are those of `LifeUnit` in `ledger/_rules.pxd`."""

    NEVER_ENDS = 0
    DAYS = 1
    MONTHS = 2


@dataclass(frozen=True)
class Wallet:
    """Something that members collect. `scale`: decimal digits behind the point."""

    name: str
    scale: int


@dataclass(frozen=True)
class PerStep:
    """For every full `step` (minor units) of a receipt's total, `give` points (the wallet's smallest unit)."""

    name: str
    step: int
    give: int
    wallet: int  # index
    funder: int  # 0: the chain itself
    life_unit: LifeUnit
    life: int  # days or months behind the business day; 0 with NEVER_ENDS
    available_after: int  # days behind the business day


@dataclass(frozen=True)
class Program:
    """A whole programme. `currency_digits`: decimals of the currency's minor unit. `max_age_days`: of a business time."""

    name: str
    currency: str
    currency_digits: int
    zone: str
    anonymous_accounts: bool
    max_age_days: int
    wallets: tuple[Wallet, ...]
    funders: tuple[tuple[str, int], ...]
    rules: tuple[PerStep, ...]
