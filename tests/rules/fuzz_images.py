"""Damaged images: whatever the bytes are, they are refused, or a receipt through them ends and touches nothing that is not its own.

    python -m tests.rules.fuzz_images --count 1000000 [--seed N]     in the build at hand
    python -m tests.rules.fuzz_images --count 100000 --asan          in a build of its own with AddressSanitizer and UBSan

The hash of every mutant is made to hold again, so that the checks behind it are asked. A smaller count runs in test_evaluate_damage.py.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import struct
import sys
import time

from ledger.rules import check, image2, lower2

PROGRAMME = """
programme: Everything
currency: EUR
zone: Europe/Warsaw
total_tolerance: 0.05
unknown_sku: no_points
no_points_on: {any: [{flag: gift_card}, {category: Services, price: {from: 100.00}}]}
wallets: [{name: points, points_live: 12 months to end of quarter}, {name: miles, scale: 2, worth: 0.50, floor: 1}]
funders: {alpina: 7}
partners: {albion: {zone: Europe/London}}
stores: [{store: "1", region: north, groups: [city]}, {store: "2", partner: albion}, {store: "3", zone: Asia/Vladivostok}]
catalogue:
  - {sku: milk, category: Food/Dairy/Milk, brand: Alpina}
  - {sku: cheese, category: Food/Dairy/Cheese, brand: Alpina, flags: [weighed]}
  - {sku: bread, category: Food/Bakery}
  - {sku: beer, category: Drinks/Beer, flags: [alcohol]}
  - {sku: card, category: Services, flags: [gift_card]}
  - {sku: repair, category: Services}
categories: {DRY: Food/Bakery, WET: Drinks/Beer}
tenders: [cash, bank_card]
channels: [shop, app]
segments: [students, staff]
favourites: {choose_from: [Food/Dairy, Drinks], at_most: 1}
tiers:
  levels:
    - {name: base}
    - {name: silver, reach: {any: [{receipts: 2, in: 30 days}, {spent: 100.00}]}}
    - {name: gold, reach: {all: [{receipts: 4, in: anniversary year}, {spent: 500.00, in: calendar year}]}}
  downgrade: one step
  grace: 1 month
experiments: {spring: {variants: {control: 20, a: 40, b: 40}, control: control}}
campaigns: {spring: {points: 1000, uses: 50}, money: {amount: 30.00}, counted: {uses: 9}}
rules:
  - {name: Base, percent: 2.5, round: half_up, caps: [{points: 500, per: month}, {uses: 3, per: day}, {points: 90, per: receipt}]}
  - {name: By line, percent: 33.3333, per: line, round: ceil, lines: {category: Food, price: {from: 1.00, to: 50.00}}}
  - {name: Steps, for_every_full: 10.00, give: 3, campaign: spring, when: {lines_total: {from: 5.00}, lines_quantity: {to: 90}}}
  - {name: Pieces, for_every_full_quantity: 0.5, give: 2, per: line, lines: {any: [{weighed: true}, {discounted: true}]}, funder: alpina}
  - {name: Fixed, give: 20, to_wallet: miles, lines: {not: {brand: Alpina}}, available_after: 3 days, points_live: end of month}
  - {name: Cheese, give: 9, lines: {sku: cheese}, exclusive: true, priority: 1}
  - {name: One, percent: 1, group: rate, priority: 1, when: {tier: [base, silver]}}
  - {name: Two, percent: 2, group: rate, priority: 2, when: {any: [{segment: students}, {promo_code: SPRING}, {lines_total: {from: 9.00}}]}}
  - {name: More, add_percent: 5, to_rules: [Base, One], lines: {favourite: true}}
  - {name: Twice, times: 2, of_rules: all, when: {weekday: [mon, tue, fri], hours: {from: "06:00", to: "02:00"}}, per: line}
  - {name: Half more, times: 1.5, of_rules: [Base, More], when: {dates: {from: 2026-01-01, to: 2027-01-01}}, round: ceil}
  - {name: Gift, give: 100, when: {birthday: {days_before: 3, days_after: 3}}, caps: [{uses: 1, per: birthday}]}
  - {name: First, give: 5, when: {nth_receipt: [1, 3, 99], every_nth_receipt: 3, channel: app}}
  - {name: New, give: 5, when: {account_age_days: {to: 600}, days_since_last_receipt: {from: 1}, not: {store_group: city}}}
  - {name: Test, give: 5, when: {experiment: {spring: [a]}, total: {from: 1.00}, eligible_total: {from: 1.00}}}
  - {name: Place, give: 5, when: {any: [{region: north}, {partner: albion}], tender: cash}, lines: {quantity: {from: 1}}}
  - {name: Card, discount_percent: 3, per: line, caps: [{amount: 5.00, per: year}]}
  - {name: Fiver, discount: 5.00, campaign: money, lines: {not: {flag: alcohol}}}
  - {name: Delivery, entitle: free_delivery, campaign: counted, caps: [{uses: 2, per: week}]}
burn:
  - {name: New members, when: {account_age_days: {to: 7}}, share: 10}
  - {name: All, share: 30, min: 5, step: 5, money_at_least: 0.10, money_at_least_per_line: 0.01,
     not_for: {any: [{flag: alcohol}, {price: {from: 90.00}}]}}
  - {name: Miles, wallet: miles, share: 50, max: 900, step: 0.02}
limits:
  - {name: Split, of: [earns, burns], per: [till, member], window: 10 minutes, segments: [staff], at_most: 2, then: refuse,
     rung: limited, lasts: 7 days}
  - {name: Jump, of: earns, measure: money, per: member, window: receipt, at_most_means: 8, after: 5, then: mark}
  - {name: Shops, of: earns, measure: stores, per: member, window: day, at_most: 4, then: review}
  - {name: Crate, of: earns, measure: quantity, per: member, window: receipt, at_most: 50.5, then: mark}
  - {name: Guesses, of: unknown_balances, per: [device, store], window: 1 hour, at_most: 9, then: refuse}
"""
DAY = 20_526  # 2026-03-14
NOON_US = (DAY * 86_400 + 43_200) * 1_000_000
LINES = [(b"milk", b"", 1000, 199, 0, False), (b"cheese", b"", 357, 599, 0, True), (b"beer", b"", 0, 250, 300, False),
         (b"riddle", b"DRY", 0, 1999, 0, False), (b"repair", b"", 0, 12_000, 0, False), (b"card", b"", 0, 1000, 0, False),
         (b"bread", b"", 2000, 0, 0, False)]
RECEIPTS = [  # lines, store, channel, tenders, codes, time, burn wallet, burn
    (LINES, b"1", b"app", [(b"cash", 5)], [b"SPRING", b"WINTER"], NOON_US, 0, 5),
    (LINES * 40, b"2", b"shop", [(b"bank_card", 5), (b"gold", 1)], [], NOON_US + 86_400_000_000, 1, 0),
    ([], b"9", b"", [], [], NOON_US - 40_000_000_000, 0, 0),
]
COUNTERS = [(counter, ((window, 7), (window - 1, 3))) for counter, window in ((2, 0), (3, 0), (6, 2026), (7, 2026), (8, 5), (9, 5))]
INTERESTING = (0, 1, 2, 7, 63, 64, 127, 255, 256, 5000, 5001, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63,
               2**64 - 1)


def image() -> bytes:
    """An image with every section in use."""
    return lower2.lower_programme(check.check_source(PROGRAMME.encode()))


def sealed(data: bytes) -> bytes:
    """The bytes with a size and a hash that hold."""
    if len(data) < 256:
        return data
    data = data[:48] + struct.pack("<I", len(data)) + data[52:]
    return data[:8] + hashlib.sha256(data[image2.HASHED_FROM:]).digest() + data[40:]


def mutant(good: bytes, dice: random.Random) -> bytes:
    """The image with one to three things changed."""
    data = bytearray(good)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(40, len(data)) if dice.random() < 0.7 else dice.randrange(256, 256 + 16 * len(image2.Kind))
        form = dice.random()
        if form < 0.3:
            data[at] ^= 1 << dice.randrange(8)
        elif form < 0.45:
            data[at] = dice.randrange(256)
        elif form < 0.9:
            size = dice.choice((2, 4, 8))
            at -= at % size
            if at + size <= len(data):
                before = int.from_bytes(data[at:at + size], "little")
                value = dice.choice((before - 1, before + 1, before + 8, *INTERESTING))
                data[at:at + size] = (value % 2**(8 * size)).to_bytes(size, "little")
        elif form < 0.95:
            other = dice.randrange(256, len(data) - 64)
            data[at:at + 16] = data[other:other + min(16, len(data) - at)]
        else:
            del data[at - at % 8:at - at % 8 + 8]
    return sealed(bytes(data))


def harmless(data: bytes) -> bool:
    """Whether the bytes are taken for an image; then receipts have gone through it."""
    from ledger._probe import LoadedImage

    try:
        loaded = LoadedImage(data)
    except ValueError:
        return False
    assert len(loaded.bounds) <= 256 and all(row[2] <= len(loaded.velocity) for row in loaded.bounds)
    for number, (lines, store, channel, tenders, codes, time_us, wallet, burn) in enumerate(RECEIPTS):
        loaded.receipt(sum(line[3] for line in lines) or 500, lines, store, channel, tenders, codes, time_us, wallet, burn)
        loaded.member(number + 3, 3, DAY - 3 * number, DAY - 20, 3 * 32 + 13, 0, number, DAY - 400, 1, 1, [1000, 300],
                      [(DAY - 40, 1, 500), (DAY - 20, 2, 5000)], COUNTERS, [])
        loaded.evaluate()
    return True


def each_byte(good: bytes, dice: random.Random) -> dict[str, int]:
    """Each byte behind the hash with one bit changed: how many were refused, and how many taken."""
    found = {"refused": 0, "taken": 0}
    for at in range(image2.HASHED_FROM, len(good)):
        data = bytearray(good)
        data[at] ^= 1 << dice.randrange(8)
        found["taken" if harmless(sealed(bytes(data))) else "refused"] += 1
    return found


def fuzz(count: int, seed: int) -> dict[str, int]:
    """So many mutants: how many were refused, and how many taken."""
    dice, good = random.Random(seed), image()
    found = {"refused": 0, "taken": 0}
    for _ in range(count):
        found["taken" if harmless(mutant(good, dice)) else "refused"] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="damaged images to load")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the mutations; printed")
    parser.add_argument("--asan", action="store_true", help="build and run with AddressSanitizer and UBSan")
    options = parser.parse_args()
    if options.asan:
        from tests.server.fuzz_wire import run_with_asan

        return run_with_asan(["--count", str(options.count), "--seed", str(options.seed)], "tests.rules.fuzz_images", ("ledger._probe",),
                             "ledger._probe")
    print(f"seed {options.seed}", flush=True)
    started = time.monotonic()
    assert harmless(image()), "the image itself must be taken"
    print(f"each byte: {each_byte(image(), random.Random(options.seed))}", flush=True)
    found = fuzz(options.count, options.seed)
    print(f"{options.count} damaged images in {time.monotonic() - started:.1f} s: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
