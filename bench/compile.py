"""How long a programme takes from its YAML and catalogue to its image, and how large the image is.

    python -m bench.compile                             1,000 rules and 100,000 articles; the bar is 5 s
    python -m bench.compile --rules 5000 --skus 300000
    python -m bench.compile --curve                     50 to 5,000 rules

Not for how fast an image is evaluated. The programme is made up: rules by category, brand, flag, sku and price, by
store, tier, segment, weekday, hour and date, a tenth of them nested, as marketing might have them after years.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from ledger.rules import check, syntax, uncollected
from ledger.rules.image2 import Image, Kind
from ledger.rules.lower2 import lower_programme

BAR_S = 5.0
CURVE = (50, 200, 1000, 2000, 5000)
STORES = 500
CATEGORIES = [f"Department {a}/Aisle {b}/Shelf {c}" for a in range(20) for b in range(12) for c in range(6)]
BRANDS = [f"Brand {i}" for i in range(800)]
FLAGS = ["alcohol", "tobacco", "gift_card", "own_brand", "organic", "weighed"]


def write_tables(folder: Path, skus: int, seed: int = 1) -> None:
    """`articles.csv` and `stores.csv`."""
    draw = random.Random(seed)  # noqa: S311 - the same goods every time, no secret
    with (folder / "articles.csv").open("w") as file:
        file.write("sku,category,brand,flags\n")
        for i in range(skus):
            flags = " ".join(flag for flag in FLAGS if draw.random() < 0.06)
            file.write(f"{4_600_000_000_000 + i * 7},{draw.choice(CATEGORIES)},{draw.choice(BRANDS)},{flags}\n")
    with (folder / "stores.csv").open("w") as file:
        file.write("store,region,groups\n")
        file.writelines(f"{i},region {i % 12},{('city', 'mall', 'city mall')[i % 3]}\n" for i in range(STORES))


def programme_text(rules: int, skus: int, seed: int = 1) -> str:
    """The YAML of a programme over those tables."""
    draw = random.Random(seed)  # noqa: S311
    lines = ["programme: Compiled", "currency: EUR", "zone: Europe/Warsaw", "largest_receipt: 100000.00", "wallets: [{name: points}]",
             "catalogue: {file: articles.csv}", "stores: {file: stores.csv}", "segments: [students, staff, families, lost, new]",
             "channels: [shop, app]", "tiers:",
             "  levels: [{name: base}, {name: silver, reach: {receipts: 5}}, {name: gold, reach: {receipts: 50}}]",
             "no_points_on: {flag: [tobacco, gift_card]}", "rules:"]
    goods = [
        lambda: f"category: {draw.choice(CATEGORIES).rsplit('/', draw.randrange(2))[0]}",
        lambda: f"category: [{draw.choice(CATEGORIES)}, {draw.choice(CATEGORIES)}]",
        lambda: f"brand: [{', '.join(draw.sample(BRANDS, 3))}]",
        lambda: f"category: {draw.choice(CATEGORIES).rsplit('/', 2)[0]}, flag: own_brand",
        lambda: f"sku: [{', '.join(str(4_600_000_000_000 + i * 7) for i in draw.sample(range(skus), 10))}]",
        lambda: f"category: {draw.choice(CATEGORIES)}, not: {{brand: [{', '.join(draw.sample(BRANDS, 5))}]}}",
        lambda: f"any: [{{brand: {draw.choice(BRANDS)}}}, {{category: {draw.choice(CATEGORIES)}, price: {{from: 5.00}}}}]",
    ]
    places = [
        lambda: "tier: [silver, gold]",
        lambda: f"store: [{', '.join(map(str, draw.sample(range(STORES), 20)))}]",
        lambda: f"region: region {draw.randrange(12)}",
        lambda: "segment: [students, families]", lambda: "weekday: [mon, tue], hours: {from: '10:00', to: '14:00'}", lambda: "channel: app",
        lambda: f"dates: {{from: 2026-{draw.randrange(1, 7):02}-01, to: 2026-{draw.randrange(7, 13):02}-15}}",
        lambda: "total: {from: 50.00}",
        lambda: "any: [{segment: staff}, {tier: gold, not: {store_group: mall}}]",
    ]
    for i in range(rules):
        parts = [f"name: Rule {i}"]
        if i % 50:
            parts.append(f"lines: {{{draw.choice(goods)()}}}")
        if draw.random() < 0.7:
            parts.append(f"when: {{{draw.choice(places)()}}}")
        parts.append(draw.choice(["percent: 5", "give: 10", "for_every_full: 10.00, give: 1", "discount_percent: 3"]))
        lines.append(f"  - {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"


def measure(rules: int, skus: int) -> tuple[dict[str, float], Image]:
    """Seconds of each part, and the image."""
    with tempfile.TemporaryDirectory(prefix="daybook-compile-") as name:
        folder = Path(name)
        write_tables(folder, skus)
        source = programme_text(rules, skus).encode()
        with uncollected():
            marks = [time.perf_counter()]
            node = syntax.parse_strict(source, "programme.yaml")
            marks.append(time.perf_counter())
            programme = check.check_node(node, "programme.yaml", folder)
            marks.append(time.perf_counter())
            data = lower_programme(programme)
            marks.append(time.perf_counter())
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return dict(zip(("read", "check", "lower"), seconds, strict=True)), Image(data)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=int, default=1000)
    parser.add_argument("--skus", type=int, default=100_000)
    parser.add_argument("--curve", action="store_true", help="50 to 5,000 rules instead")
    asked = parser.parse_args()
    print(" rules     skus  read s  check s  lower s  in all s  image kB  classes  rules a class")
    for rules in CURVE if asked.curve else (asked.rules,):
        seconds, image = measure(rules, asked.skus)
        classes = image[Kind.CLASSES]
        parts = f"{seconds['read']:7.2f} {seconds['check']:8.2f} {seconds['lower']:8.2f} {sum(seconds.values()):9.2f}"
        print(f"{rules:6} {asked.skus:8} {parts} {len(image.data) / 1024:9.0f} {len(classes):8} "
              f"{classes['count'].mean():8.1f} (most {classes['count'].max()})")
    if not asked.curve and (asked.rules, asked.skus) == (1000, 100_000):
        print(f"the bar is {BAR_S:.0f} s")


if __name__ == "__main__":
    main()
