"""A checked programme to its image: flat little-endian bytes that the core evaluates in place.

Not for checking (`check_v1.py`). The records are those of `ledger/_rules.pxd`; the bytes are explained in
docs/journal-format.md, section "Image". The same programme and zone data give the same bytes.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ledger import limits
from ledger.rules import zones
from ledger.rules.model_v1 import Program

MAGIC = 0x454C5552  # "RULE"
VERSION = 1
HASHED_FROM = 40
OPENS_ANONYMOUS = 1
PER_STEP = 1
SCOPE_RECEIPT = 1

SECTION = np.dtype([("offset", "<u4"), ("count", "<u4")])
HEADER = np.dtype([
    ("magic", "<u4"), ("version", "<u4"), ("hash", "V32"), ("max_age_us", "<i8"), ("size", "<u4"), ("flags", "<u4"),
    ("currency", "S4"), ("reserved", "<u4"), ("zone", "S40"), ("tzdata", "S16"), ("name", "S40"), ("sections", SECTION, 4),
])
WALLET = np.dtype([("name", "S32"), ("scale", "<u4"), ("reserved", "<u4")])
RULE = np.dtype([("name", "S64")])
OP = np.dtype([
    ("step", "<i8"), ("give", "<i8"), ("reserved", "<i8", 2), ("rule", "<u4"), ("code", "<u2"), ("wallet", "<u2"), ("funder", "<u2"),
    ("available_after", "<u2"), ("lifetime", "<u2"), ("lifetime_unit", "u1"), ("scope", "u1"),
])
ZONE = np.dtype([("start_us", "<i8"), ("offset_s", "<i4"), ("first_day", "<i4")])

assert (HEADER.itemsize, WALLET.itemsize, RULE.itemsize, OP.itemsize, ZONE.itemsize) == (192, 40, 64, 48, 16)


def lower_program(program: Program) -> bytes:
    """The image of a programme. ValueError: it would be larger than IMAGE_BYTES_MAX."""
    wallets = np.array([(wallet.name.encode(), wallet.scale, 0) for wallet in program.wallets], WALLET)
    rules = np.array([(rule.name.encode(),) for rule in program.rules], RULE)
    ops = np.zeros(len(program.rules), OP)
    for i, rule in enumerate(program.rules):
        ops[i] = (rule.step, rule.give, (0, 0), i + 1, PER_STEP, rule.wallet, rule.funder, rule.available_after, rule.life,
                  rule.life_unit, SCOPE_RECEIPT)
    zone = np.array([tuple(span) for span in zones.spans(program.zone)], ZONE)

    header = np.zeros((), HEADER)
    parts, at = [], HEADER.itemsize
    for i, section in enumerate((wallets, rules, ops, zone)):
        header["sections"][i] = (at, len(section))
        data = section.tobytes()
        data += bytes(-len(data) % 8)
        parts.append(data)
        at += len(data)
    if at > limits.IMAGE_BYTES_MAX:
        raise ValueError(f"the image would have {at} bytes, at most {limits.IMAGE_BYTES_MAX} are allowed")
    header["magic"], header["version"], header["size"] = MAGIC, VERSION, at
    header["max_age_us"] = program.max_age_days * zones.DAY_US
    header["flags"] = OPENS_ANONYMOUS if program.anonymous_accounts else 0
    header["currency"], header["zone"] = program.currency.encode(), program.zone.encode()
    header["tzdata"], header["name"] = zones.release().encode(), program.name.encode()
    image = bytearray(header.tobytes() + b"".join(parts))
    image[8:40] = hashlib.sha256(image[HASHED_FROM:]).digest()
    return bytes(image)


def image_hash(image: bytes) -> str:
    """The content hash that an image carries, in hex."""
    return image[8:40].hex()
