"""How long rules take: one receipt through a compiled programme, in the core alone.

    python -m bench.rules                   the bars, and the curve from 50 to 5,000 rules
    python -m bench.rules --json            the same for programs

Not for calls (bench/run.py). A programme as marketing leaves it after some years: a few rules about everything, most about a category, a
brand or some articles, in some weeks, tiers, stores, segments or hours; caps, campaigns, discounts, multipliers. What does not depend on
the number of rules (catalogue, tiers, burn) is always the same. Each row is the mean over some receipts, each of them many times, so code
and tables are warm. Beside each bar stands the same receipts under the two rules about everything alone: what is not the rules'.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ledger._probe import LoadedImage
from ruamel.yaml import YAML

from ledger.rules import check, lower2, tree

SEED = 4
ARTICLES, DEPARTMENTS, GROUPS = 10_000, 20, 10
STORES = 40
RECEIPTS = 16
TIME_US = 1_774_000_000_000_000  # 2026-03-20 09:46:40 UTC
DAY_NEVER = 2**31 - 1
BARS = ((6, 200, 2.0), (20, 1000, 8.0), (500, 1000, 150.0))  # lines, rules, microseconds
CURVE = (50, 100, 200, 500, 1000, 2000, 5000)
CONTROL = 2  # rules: the ones about everything
SECONDS = 0.2  # of one receipt


def article(i: int) -> dict[str, Any]:
    """One article of the catalogue."""
    department = i % DEPARTMENTS
    flags = ["alcohol"] if department == 3 else ["gift_card"] if department == 7 and (i // DEPARTMENTS) % 50 == 1 else []
    category = f"Department {department}/Group {i // DEPARTMENTS % GROUPS}"
    return {"sku": f"4600000{i:06}", "category": category, "brand": f"Brand {i % 300}", "flags": flags}


def lines_of(dice: random.Random, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a rule is about."""
    form = dice.random()
    department, group = dice.randrange(DEPARTMENTS), dice.randrange(GROUPS)
    if form < 0.25:
        return {"category": f"Department {department}"}
    if form < 0.55:
        return {"category": f"Department {department}/Group {group}"}
    if form < 0.75:
        return {"brand": f"Brand {dice.randrange(300)}"}
    if form < 0.9:
        return {"sku": sorted({rows[dice.randrange(len(rows))]["sku"] for _ in range(10)})}
    department = department if department != 3 else 4
    return {"category": f"Department {department}", "price": {"from": "1.00", "to": "20.00"}, "not": {"flag": "alcohol"}}


def when_of(dice: random.Random) -> dict[str, Any]:
    """When it applies: nearly all rules have their weeks of the year."""
    when: dict[str, Any] = {}
    if dice.random() < 0.9:
        month = dice.randrange(1, 13)
        when["dates"] = {"from": f"2026-{month:02}-01", "to": f"2026-{month:02}-{dice.choice([8, 15, 22]):02}"} if month != 3 else \
            {"from": "2026-03-15", "to": "2026-04-01"}
    if dice.random() < 0.5:
        when["tier"] = dice.sample(["base", "silver", "gold"], 2)
    if dice.random() < 0.3:
        when["store_group"] = f"group {dice.randrange(5)}"
    if dice.random() < 0.2:
        when["weekday"] = dice.sample(list(tree.WEEKDAYS), 4)
    if dice.random() < 0.2:
        when["hours"] = {"from": f"{dice.randrange(6, 12):02}:00", "to": f"{dice.randrange(14, 24):02}:00"}
    if dice.random() < 0.15:
        when["segment"] = [f"segment {dice.randrange(40)}", f"segment {dice.randrange(40)} b"]
    if dice.random() < 0.05:
        when["any"] = [{"promo_code": "SPRING"}, {"total": {"from": "10.00"}}, {"birthday": {"days_before": 3, "days_after": 3}}]
    return when


def rule(i: int, dice: random.Random, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The i-th rule. The first two are about everything."""
    name = f"Rule {i}"
    if i == 0:
        return {"name": name, "percent": 1}
    if i == 1:
        return {"name": name, "for_every_full": "100.00", "give": 5, "caps": [{"points": 5000, "per": "month"}]}
    made: dict[str, Any] = {"name": name, "lines": lines_of(dice, rows)}
    if when := when_of(dice):
        made["when"] = when
    form = dice.random()
    if form < 0.4:
        made |= {"percent": dice.choice([1, 2, 5, 10])}
    elif form < 0.6:
        made |= {"give": dice.choice([10, 50, 100])}
    elif form < 0.7:
        made |= {"for_every_full_quantity": 1, "give": 5}
    elif form < 0.8:
        made |= {"add_percent": dice.choice([1, 2]), "to_rules": "Rule 0"}
    elif form < 0.9:
        made |= {"times": 2, "of_rules": "Rule 0"}
    else:
        made |= {"discount_percent": dice.choice([3, 5]), "per": "line"}
    if dice.random() < 0.3 and form < 0.9:
        made["caps"] = [{"points": 500, "per": "month"}]
    if dice.random() < 0.1 and form < 0.9:
        made["campaign"] = f"campaign {dice.randrange(10)}"
    if dice.random() < 0.05:
        made |= {"group": "best", "priority": 1 + i % 1000}
    return made


def distinct(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules of a group and kind must differ in priority: those that would not leave the group."""
    taken = set()
    for made in rules:
        if "group" in made:
            kind = next(key for key in ("percent", "give", "add_percent", "times", "discount_percent") if key in made)
            key = ("points" if kind in ("percent", "give") else kind, made["priority"])
            if key in taken:
                del made["group"], made["priority"]
            taken.add(key)
    return rules


def programme(count: int, articles: int = ARTICLES) -> tree.Programme:
    """A programme of so many rules."""
    with tempfile.TemporaryDirectory() as folder:
        text = write_programme(Path(folder), count, [article(i) for i in range(articles)]).read_text()
        return check.check_node(YAML(typ="safe", pure=True).compose(text), "bench", Path(folder))


def write_programme(folder: Path, count: int, rows: list[dict[str, Any]], store: str = "{}", stores: int = STORES,
                    currency: str = "EUR") -> Path:
    """So many rules over these articles as files; returns the YAML's. store: how stores are called, by their number."""
    dice = random.Random(SEED)
    text = io.StringIO()
    YAML().dump({
        "programme": f"{count} rules", "currency": currency, "zone": "Europe/Warsaw", "anonymous_accounts": True,
        "no_points_on": {"flag": ["gift_card"]},
        "wallets": [{"name": "points"}],
        "catalogue": {"file": "articles.csv"},
        "stores": [{"store": store.format(i), "region": f"region {i % 4}", "groups": [f"group {i % 5}"]} for i in range(stores)],
        "segments": [name for i in range(40) for name in (f"segment {i}", f"segment {i} b")],
        "tenders": ["cash", "card"], "channels": ["shop", "app"],
        "tiers": {"levels": [{"name": "base"}, {"name": "silver", "reach": {"any": [{"receipts": 5}, {"spent": "1000.00"}]}},
                             {"name": "gold", "reach": {"spent": "5000.00", "in": "calendar year"}}], "downgrade": "one step"},
        "campaigns": {f"campaign {i}": {"points": 1_000_000} for i in range(10)},
        "rules": distinct([rule(i, dice, rows) for i in range(count)]),
        "burn": [{"name": "All", "share": 30, "not_for": {"flag": "alcohol"}}],
    }, text)
    with (folder / "articles.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "flags": " ".join(row["flags"])} for row in rows)
    path = folder / "rules.yaml"
    path.write_text(text.getvalue())
    return path


def time_us(loaded: LoadedImage, lines: int, seconds: float) -> tuple[float, float]:
    """Mean microseconds of a receipt of so many lines, and how many rules gave something."""
    dice = random.Random(SEED + lines)
    spent, given = 0.0, 0
    for number in range(RECEIPTS):
        found = [(f"4600000{dice.randrange(ARTICLES):06}".encode(), b"", dice.choice([0, 1000, 2000]), dice.randrange(50, 3000), 0, False)
                 for _ in range(lines)]
        store = f"{dice.randrange(STORES)}".encode()
        loaded.receipt(sum(line[3] for line in found), found, store, b"shop", [(b"card", 1)], [], TIME_US)
        birthday, segments = 3 * 32 + 20, 1 << dice.randrange(80)
        loaded.member(number + 1, 4, 20_000, 20_500, birthday, 0, number % 3, DAY_NEVER, segments, 0, [10_000], [], [], [])
        once = loaded.run(100) / 100
        rounds = max(100, int(seconds / RECEIPTS * 1e6 / max(once, 0.1)))
        spent += loaded.run(rounds) / rounds
        given += loaded.given_count
    return spent / RECEIPTS, given / RECEIPTS


def row(lines: int, rules: int, loaded: LoadedImage, seconds: float) -> dict[str, Any]:
    """One figure: the best of three, for what the machine does beside is not the rules'."""
    runs = [time_us(loaded, lines, seconds) for _ in range(3)]
    return {"lines": lines, "rules": rules, "microseconds": round(min(us for us, _ in runs), 2), "rules_that_gave": round(runs[0][1], 1)}


def main(arguments: list[str] | None = None) -> int:
    """Prints bars and curve; 0: every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rules", type=int, nargs="+", default=list(CURVE), help="points of the curve")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each receipt size and number of rules")
    options = parser.parse_args(arguments)
    images: dict[int, LoadedImage] = {}
    made: list[dict[str, Any]] = []
    for count in sorted({CONTROL, *options.rules}):
        begun = time.perf_counter()
        checked = programme(count)
        between = time.perf_counter()
        image = lower2.lower_programme(checked)
        lowered = time.perf_counter()
        images[count] = LoadedImage(image)
        made.append({"rules": count, "image_bytes": len(image), "checked_s": round(between - begun, 2),
                     "lowered_s": round(lowered - between, 2), "loaded_s": round(time.perf_counter() - lowered, 4)})
    control = images[CONTROL] if CONTROL in options.rules else images.pop(CONTROL)
    made = [row for row in made if row["rules"] in images]
    bars = [{**row(lines, rules, images[rules], options.seconds), "bar": bar,
             "control_microseconds": row(lines, CONTROL, control, options.seconds)["microseconds"]}
            for lines, rules, bar in BARS if rules in images]
    curve = [row(6, count, loaded, options.seconds) for count, loaded in images.items()]
    if options.json:
        print(json.dumps({"bars": bars, "curve": curve, "images": made}))
    else:
        for figure in bars:
            print(f"{figure['lines']:4} lines x {figure['rules']:5} rules  {figure['microseconds']:8.2f} us  bar {figure['bar']:6.1f}  "
                  f"{figure['rules_that_gave']:5.1f} rules gave  {CONTROL} rules alone {figure['control_microseconds']:8.2f} us  "
                  f"{'met' if figure['microseconds'] <= figure['bar'] else 'missed'}")
        print()
        for figure, image in zip(curve, made, strict=True):
            print(f"   6 lines x {figure['rules']:5} rules  {figure['microseconds']:8.2f} us  {figure['rules_that_gave']:5.1f} rules gave  "
                  f"image {image['image_bytes']:9} bytes, lowered in {image['lowered_s']:.2f} s, "
                  f"loaded in {image['loaded_s'] * 1000:.1f} ms")
    return 0 if all(figure["microseconds"] <= figure["bar"] for figure in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
