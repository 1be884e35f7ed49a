"""Whether a programme may follow the one before it: what members and lots are numbered by must keep its numbers.

Not for what is wrong with a programme in itself (`check.py`). Called by whoever publishes. Both are images; version 1 says less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ledger.rules import image2
from ledger.rules.image2 import Image, Kind

WALLET_1 = np.dtype([("name", "S32"), ("scale", "<u4"), ("reserved", "<u4")])
ZONE_AT, ZONE_BYTES, CURRENCY_AT, WALLETS_AT = 64, 40, 56, 160  # of both versions, but for the last


class Names(NamedTuple):
    """What an image numbers, in its order. None: this version of images does not say."""

    currency: str
    zone: str
    wallets: tuple[tuple[str, int], ...]  # name, scale
    segments: tuple[str, ...] | None
    favourites: tuple[str, ...] | None
    funders: dict[str, int] | None


class Unfit(NamedTuple):
    """One thing that must not change. key: of the programme, at the top."""

    key: str
    text: str


def names_of(image: bytes) -> Names:
    """Errors: image2.ImageDamaged."""
    currency = image[CURRENCY_AT:CURRENCY_AT + 3].decode("ascii", "replace")
    zone = image[ZONE_AT:ZONE_AT + ZONE_BYTES].rstrip(b"\0").decode("utf-8", "replace")
    if image[:8] == image2.MAGIC.to_bytes(4, "little") + b"\1\0\0\0":
        at, count = np.frombuffer(image, "<u4", 2, WALLETS_AT)
        rows = np.frombuffer(image, WALLET_1, int(count), int(at))
        return Names(currency, zone, tuple((_text(row["name"]), int(row["scale"])) for row in rows), None, None, None)
    parts = Image(image)
    texts = parts[Kind.TEXTS].tobytes()
    return Names(
        currency, zone, tuple((_text(row["name"]), int(row["scale"])) for row in parts[Kind.WALLETS]),
        tuple(_text(row["name"]) for row in parts[Kind.SEGMENTS]),
        tuple(texts[row["offset"]:row["offset"] + row["size"]].decode() for row in parts[Kind.FAVOURITES]),
        {_text(row["name"]): int(row["number"]) for row in parts[Kind.FUNDERS]})


def _text(name: bytes) -> str:
    return bytes(name).rstrip(b"\0").decode()


def unfit(before: Names, after: Names, version: int) -> list[Unfit]:
    """What keeps `after` from following `before`, which was published as `version`; with what would be right."""
    since = f"as in version {version}"
    found = []
    if after.currency != before.currency:
        found.append(Unfit("currency", f"must be {before.currency}, {since}, was {after.currency}: balances and budgets are counted in it"))
    if after.zone != before.zone:
        found.append(Unfit("zone", f"must be {before.zone}, {since}, was {after.zone}: points live by its days"))
    wallets = [tuple(f"{name} (scale {scale})" for name, scale in names.wallets) for names in (before, after)]
    lists = [("wallets", *wallets, "points"), ("segments", before.segments, after.segments, "members"),
             ("favourites", before.favourites, after.favourites, "members' choices")]
    for key, old, new, what in lists:
        if old and new is not None and new[:len(old)] != old:
            place = next(i for i, name in enumerate(old) if i >= len(new) or new[i] != name)
            was = repr(new[place]) if place < len(new) else "not there"
            found.append(Unfit(key, f"number {place + 1} must be {old[place]!r}, {since}, was {was}: {what} are kept by number, so none "
                                    "may be taken out, moved or renamed; new ones go to the end"))
    for name, number in sorted((before.funders or {}).items(), key=lambda row: row[1]):
        if after.funders is not None and after.funders.get(name) != number:
            was = f"was {after.funders[name]}" if name in after.funders else "is not there"
            found.append(Unfit("funders", f"{name} must have the number {number}, {since}, {was}: points are kept with the number of "
                                          "who pays for them"))
    return found
