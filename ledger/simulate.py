"""What another programme would have cost: the journal's receipts, or those of Parquet files, decided anew and compared.

The deciding is the core's own (ledger/_simulator.pyx); this finds records, adds up and compares. Not for publishing a programme and not for
words (server/cli_simulate.py). Memory depends on members, rules and days. Units: us since 1970, minor units, points in smallest units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ledger import errors, limits
from ledger._simulator import Simulator
from ledger.journal import Damage, Journal
from ledger.room import TablesTooSmall, with_room
from ledger.rules import CompiledProgram, quoted, tree
from ledger.rules.syntax import ProgramError

IDS_KEPT = 65_536
WALLETS = 16
RECEIPTS, DISCOUNTS, POINTS = 0, 1, 2  # columns of a row of a member or day
FIRST_US, LAST_US = -(2**63), 2**63 - 1
DISCOUNTS_BEFORE = "(discounts: the journal has them by line, not by rule)"
EXTREMES = 10  # members that are named at either end

Progress = Callable[[int, int], None]
"""progress(done, total): entries or rows."""


class SimulationRefused(Exception):
    """The simulation cannot be made as asked. `str()` is one clear sentence."""


@dataclass(frozen=True, slots=True)
class RuleCost:
    """One rule, before and after: on how many receipts it gave something, how many points, how much discount, what that costs."""

    name: str
    wallet: str
    funder: str
    receipts: tuple[int, int]
    points: tuple[int, int]
    discounts: tuple[int, int]
    cost: tuple[int, int]
    cut: int  # points or minor units that caps and campaigns took away, after
    held_back: int  # receipts on which they left nothing


@dataclass(frozen=True, slots=True)
class WalletCost:
    """One wallet, before and after, in its smallest unit. `worth`: minor units of one whole point."""

    name: str
    scale: int
    worth: int
    issued: tuple[int, int]
    burned: tuple[int, int]
    expired: tuple[int, int]


@dataclass(slots=True)
class Simulation:
    """What came out. Pairs are (before, after); costs are minor units: points at their wallet's worth, and discounts."""

    programme: str
    against: str
    currency: str
    currency_digits: int
    receipts: tuple[int, int]
    refused: tuple[int, int]
    refusals: dict[str, int]  # of the programme, by reason
    burns: tuple[int, int]
    cut_burns: int
    discounts: tuple[int, int]
    cost: tuple[int, int]
    wallets: list[WalletCost]
    rules: list[RuleCost]
    funders: dict[str, tuple[int, int]]
    members: int  # who had a receipt
    gained: int
    lost: int
    gains: int  # minor units of those who gained, all together
    losses: int
    most: list[tuple[int, int]]  # member, minor units more; the most first
    least: list[tuple[int, int]]  # the most lost first
    first_day: int
    days: list[tuple[int, int, int]] = field(repr=False)  # receipts, cost before, cost after
    member_rows: Any = field(repr=False)  # numpy: member, receipts, cost before, cost after
    entries: int
    duration_us: int


# --- over a journal ---------------------------------------------------------------------------------------------------

def simulate(data: Path, programme: CompiledProgram, *, against: CompiledProgram | None = None, from_us: int = FIRST_US,
             until_us: int = LAST_US, progress: Progress = lambda done, total: None) -> Simulation:
    """As if the programme had been in force from `from_us` on, over the journal's entries before `until_us`.

    Before `from_us` the journal is taken as it is. against: compared with another programme instead of what the journal has.
    Errors: SimulationRefused, JournalError, MemoryError.
    """
    with Journal(data) as journal:
        try:
            return with_room(journal, lambda members_max: _over_journal(journal, programme, against, from_us, until_us, members_max,
                                                                        progress))
        except TablesTooSmall:
            raise SimulationRefused(f"the journal holds more than {limits.MEMBERS_MAX_LIMIT} members") from None


def _over_journal(journal: Journal, programme: CompiledProgram, against: CompiledProgram | None, from_us: int, until_us: int,
                  members_max: int, progress: Progress) -> Simulation:
    begun = time.perf_counter_ns()
    runs = [Simulator(journal.directory, members_max, IDS_KEPT, limits.RESERVATIONS_MAX, compiled.image, compiled.source, from_us, until_us)
            for compiled in (programme, against) if compiled is not None]
    total = journal.drained().sequence
    for batch in journal.batches():
        for run in runs:
            fault = run.feed(batch)
            if fault is not None:
                index, name, sequence, applied = fault
                if applied == "full":
                    raise TablesTooSmall
                if applied == "program":
                    raise SimulationRefused(f"at entry {sequence} another programme comes into force, or this one cannot: if one was "
                                            "published before --from for a moment behind it, let --from begin behind that moment")
                raise Damage(f"{journal.file}, group {batch[index][0]}, entry {sequence}",
                             f"it cannot be read or applied ({name}, {applied})")
        progress(runs[0].last_sequence, max(total, runs[0].last_sequence))
        if runs[0].over:
            break
    entries = runs[0].last_sequence
    for run in runs:
        run.finish()
    _check_names(runs[0].programmes, programme)
    return _compared(runs, programme, against, entries, (time.perf_counter_ns() - begun) // 1000)


def _check_names(programmes: list[tuple[int, bytes]], programme: CompiledProgram) -> None:
    """Wallets keep their order: what the journal has in the second wallet must be in the second of the other programme. Errors:
    SimulationRefused."""
    ours = [wallet.name for wallet in programme.program.wallets]
    for _, source in programmes:
        names = quoted.names_of(source, "wallets") if source else []
        if names and ours[:len(names)] != names[:len(ours)]:
            raise SimulationRefused(f"the journal's wallets are {', '.join(names)}, the programme's {', '.join(ours)}: they must keep "
                                    "their order, new ones come at the end")


# --- over Parquet files ----------------------------------------------------------------------------------------------

COLUMNS = ("time", "kind", "refusal", "member_id", "purchase_time", "store", "total_minor", "lines", "channel", "tenders", "promo_codes",
           "program_version", "awards", "discounts", "postings")
BATCH_ROWS = 8192


def simulate_receipts(files: Iterable[Path], programme: CompiledProgram, *, against: CompiledProgram | None = None,
                      members_max: int = limits.MEMBERS_MAX_DEFAULT, progress: Progress = lambda done, total: None) -> Simulation:
    """The same over receipts in Parquet files, in the order of their `time`: those of `daybook export`, or others with such columns.

    Needed: member_id, time, and lines or total_minor. docs/simulate.md lists all. Errors: SimulationRefused, OSError, MemoryError.
    """
    begun = time.perf_counter_ns()
    runs = [Simulator(bytes(16), members_max, IDS_KEPT, 1024, compiled.image, compiled.source)
            for compiled in (programme, against) if compiled is not None]
    wallets = {wallet.name: place for place, wallet in enumerate(programme.program.wallets)}
    numbers: dict[int, int] = {}  # member_id -> account number, by first appearance
    count, last_us = 0, FIRST_US
    for row, done, total in _rows(list(files)):
        count += 1
        time_us = row["time"]
        if time_us < last_us:
            raise SimulationRefused(f"row {count}: its time is before that of the row above it: the files must be in the order of time")
        last_us = time_us
        if row["member_id"] is None or row.get("refusal") is not None:
            continue
        known = numbers.setdefault(row["member_id"], len(numbers) + 1)
        if row.get("kind") not in (None, "earn", "commit"):
            continue
        try:
            for run in runs:
                run.begin(time_us)
                run.receipt(known, time_us, *_receipt_of(row, wallets))
        except (ValueError, OverflowError) as error:
            raise SimulationRefused(f"row {count}: {error}") from None
        if count % BATCH_ROWS == 0:
            progress(done, total)
    if not numbers:
        raise SimulationRefused("the files hold no receipt")
    for run in runs:
        run.finish()
    return _compared(runs, programme, against, count, (time.perf_counter_ns() - begun) // 1000)


def _rows(files: list[Path]) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Rows with how many there were, and how many there are; times in us. Errors: SimulationRefused."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = [parquet.ParquetFile(path) for path in files]
        total = sum(file.metadata.num_rows for file in opened)
        done = 0
        for path, file in zip(files, opened, strict=True):
            names = set(file.schema_arrow.names)
            if missing := [name for name in ("member_id", "time") if name not in names]:
                raise SimulationRefused(f"{path} has no column {' and no '.join(missing)}: docs/simulate.md lists what receipts need")
            if not names & {"lines", "total_minor"}:
                raise SimulationRefused(f"{path} has neither lines nor total_minor: docs/simulate.md lists what receipts need")
            for batch in file.iter_batches(BATCH_ROWS, columns=[name for name in COLUMNS if name in names]):
                table = pa.Table.from_batches([batch])
                for name in {"time", "purchase_time"} & names:
                    column = table[name].cast(pa.timestamp("us", tz=table.schema.field(name).type.tz)).cast(pa.int64())
                    table = table.set_column(table.schema.get_field_index(name), name, column)
                for row in table.to_pylist():
                    done += 1
                    yield row, done, total
    except (pa.ArrowException, AttributeError, TypeError) as error:
        raise SimulationRefused(f"the receipts cannot be read: {error}") from None


def _receipt_of(row: dict[str, Any], wallets: dict[str, int]) -> tuple[Any, ...]:
    """What Simulator.receipt takes behind member and time."""
    lines = [(line["sku"].encode(), (line.get("category") or "").encode(), line.get("quantity_milli") or 0, line["amount_minor"],
              line.get("regular_amount_minor") or 0, bool(line.get("weighed"))) for line in row.get("lines") or ()]
    total = row.get("total_minor")
    total = sum(line[3] for line in lines) if total is None else total
    burned = {posting["wallet"]: posting["points"] for posting in row.get("postings") or () if posting["account"] == "redeemed"}
    wallet, points = next(iter(burned.items()), ("", 0))
    awards = [(award["rule"], wallets.get(award["wallet"], WALLETS), award["points"]) for award in row.get("awards") or ()]
    return (row.get("purchase_time"), total, lines, (row.get("store") or "").encode(), (row.get("channel") or "").encode(),
            [(tender["name"].encode(), tender["amount_minor"]) for tender in row.get("tenders") or ()],
            [code.encode() for code in row.get("promo_codes") or ()], wallets.get(wallet, 0), points, row.get("program_version") or 0,
            awards, sum(found["amount_minor"] for found in row.get("discounts") or ()))


# --- comparing --------------------------------------------------------------------------------------------------------

def _worths(programme: tree.Programme) -> list[tuple[int, int]]:
    """Per wallet: minor units of a whole point, and its smallest units."""
    return [(wallet.worth, 10**wallet.scale) for wallet in programme.wallets]


def _cost(points: int, worth: tuple[int, int]) -> int:
    """Minor units, cut off."""
    return points * worth[0] // worth[1]


def _rows_of(data: bytes) -> Any:
    return np.frombuffer(data, np.int64).reshape(-1, POINTS + WALLETS)


def _costs(rows: Any, worths: list[tuple[int, int]]) -> Any:
    """Of each row, in minor units. Wallet by wallet, so that whole points count whole."""
    costs = rows[:, DISCOUNTS].copy()
    for place, (worth, unit) in enumerate(worths):
        whole, part = np.divmod(rows[:, POINTS + place], unit)
        costs += whole * worth + part * worth // unit
    return costs


def _compared(runs: list[Simulator], programme: CompiledProgram, against: CompiledProgram | None, entries: int,
              duration_us: int) -> Simulation:
    """The run's figures beside those of the journal, or of the other run."""
    run, checked = runs[0], programme.program
    worths = _worths(checked)
    totals = run.totals()
    after = totals["after"]
    before = runs[1].totals()["after"] if against else totals["before"]
    members_before, members_after = run.members()
    first_day, days_before, days_after = run.days()
    if against:
        members_before, days_before = runs[1].members()[1], runs[1].days()[2]
    pair = [_rows_of(members_before), _rows_of(members_after)]
    there = np.flatnonzero((pair[0][:, RECEIPTS] > 0) | (pair[1][:, RECEIPTS] > 0))
    costs = [_costs(rows[there], worths) for rows in pair]
    member_rows = np.column_stack([there + 1, np.maximum(pair[0][there, RECEIPTS], pair[1][there, RECEIPTS]), *costs])
    more = costs[1] - costs[0]
    order = np.argsort(more, kind="stable")
    rules = _rules(runs, checked, against)
    funders: dict[str, tuple[int, int]] = {}
    for rule in rules:
        old, new = funders.get(rule.funder, (0, 0))
        funders[rule.funder] = old + rule.cost[0], new + rule.cost[1]
    by_day = [_rows_of(days) for days in (days_before, days_after)]
    # The first day is that of the first receipt, also where members were enrolled before.
    quiet = int(np.argmax((by_day[0][:, RECEIPTS] > 0) | (by_day[1][:, RECEIPTS] > 0))) if len(by_day[0]) else 0
    by_day = [rows[quiet:] for rows in by_day]
    day_costs = [_costs(rows, worths) for rows in by_day]

    def both(name: str, place: int) -> tuple[int, int]:
        found = before[name]
        return found[place] if place < len(found) else 0, after[name][place]

    wallets = [WalletCost(wallet.name, wallet.scale, wallet.worth, both("points", i), both("burned", i), both("expired", i))
               for i, wallet in enumerate(checked.wallets)]
    cost = tuple(before_or_after["discounts"] + sum(_cost(points, worth) for points, worth in
                                                    zip(before_or_after["points"], worths, strict=False))
                 for before_or_after in (before, after))
    return Simulation(
        programme=checked.name, against=against.program.name if against else "what the journal gave",
        currency=checked.currency, currency_digits=checked.currency_digits,
        receipts=(before["receipts"], after["receipts"]), refused=(before["refused"], after["refused"]),
        refusals={errors.BY_NUMBER[number].name: count for number, count in sorted(totals["refusals"].items())},
        burns=(before["burns"], after["burns"]), cut_burns=after["cut_burns"], discounts=(before["discounts"], after["discounts"]),
        cost=(cost[0], cost[1]), wallets=wallets, rules=rules, funders=dict(sorted(funders.items())),
        members=len(there), gained=int((more > 0).sum()), lost=int((more < 0).sum()), gains=int(more[more > 0].sum()),
        losses=-int(more[more < 0].sum()),
        most=[(int(there[i]) + 1, int(more[i])) for i in order[::-1][:EXTREMES] if more[i] > 0],
        least=[(int(there[i]) + 1, int(more[i])) for i in order[:EXTREMES] if more[i] < 0],
        first_day=first_day + quiet,
        days=[(int(rows[RECEIPTS]), int(old), int(new)) for rows, old, new in zip(by_day[1], *day_costs, strict=True)],
        member_rows=member_rows, entries=entries, duration_us=duration_us)


def _rules(runs: list[Simulator], checked: tree.Programme, against: CompiledProgram | None) -> list[RuleCost]:
    """By name: a rule that has kept it is the same one. The programme's, in its order, then those that only were."""
    worths = _worths(checked)
    places = {wallet.name: place for place, wallet in enumerate(checked.wallets)}
    old: dict[str, list[int]] = {}  # name -> receipts, points, discounts
    where: dict[str, tuple[str, str]] = {}  # name -> wallet, funder
    if against:
        for number, receipts, points, discounts, *_ in runs[1].rules_after():
            rule = against.program.rules[number - 1]
            old[rule.name] = [receipts, points, discounts]
            where[rule.name] = _owner(against.program, rule)
    else:
        named = {version: [rule.name for rule in rules] for version, rules in _quoted(runs[0].programmes).items()}
        for rules in _quoted(runs[0].programmes).values():
            where |= {rule.name: (rule.wallet or checked.wallets[0].name, rule.funder) for rule in rules}
        for version, number, *counts in runs[0].rules_before():
            rules = named.get(version, [])
            row = old.setdefault(rules[number - 1] if number <= len(rules) else f"rule {number} of version {version}", [0, 0, 0])
            row[:] = [known + more for known, more in zip(row, counts, strict=False)]
    made = []
    for number, receipts, points, discounts, cut, held_back in runs[0].rules_after():
        rule = checked.rules[number - 1]
        wallet, funder = _owner(checked, rule)
        before = old.pop(rule.name, [0, 0, 0])
        worth = worths[rule.wallet]
        made.append(RuleCost(rule.name, wallet if rule.kind in ("points", "add_percent", "times") else "", funder, (before[0], receipts),
                             (before[1], points), (before[2], discounts),
                             (_cost(before[1], worth) + before[2], _cost(points, worth) + discounts), cut, held_back))
    if not against and (minor := runs[0].totals()["before"]["discounts"]):
        old[DISCOUNTS_BEFORE] = [0, 0, minor]
        where[DISCOUNTS_BEFORE] = ("", "")
    for name, (receipts, points, discounts) in old.items():
        wallet, funder = where.get(name, (checked.wallets[0].name, ""))
        worth = worths[places.get(wallet, 0)]
        made.append(RuleCost(name, wallet, funder, (receipts, 0), (points, 0), (discounts, 0), (_cost(points, worth) + discounts, 0), 0, 0))
    return made


def _owner(programme: tree.Programme, rule: tree.Rule) -> tuple[str, str]:
    """Wallet and funder of a rule."""
    return programme.wallets[rule.wallet].name, {number: name for name, number in programme.funders}.get(rule.funder, "")


def _quoted(programmes: list[tuple[int, bytes]]) -> dict[int, list[quoted.QuotedRule]]:
    """The rules of each version that has its source."""
    found = {}
    for version, source in programmes:
        try:
            found[version] = quoted.rules_of(source)
        except ProgramError:
            continue  # a version of a kind that this build does not know: its rules go by numbers
    return found


# --- writing ----------------------------------------------------------------------------------------------------------

def write_parquet(made: Simulation, folder: Path) -> list[Path]:
    """rules.parquet, members.parquet and days.parquet. docs/simulate.md has the columns. Errors: OSError."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rules = {"rule": [rule.name for rule in made.rules], "wallet": [rule.wallet for rule in made.rules],
             "funder": [rule.funder for rule in made.rules]}
    for name in ("receipts", "points", "discounts", "cost"):
        for side, when in enumerate(("before", "after")):
            rules[f"{name}_{when}"] = [getattr(rule, name)[side] for rule in made.rules]
    rules |= {"cut": [rule.cut for rule in made.rules], "held_back": [rule.held_back for rule in made.rules]}
    members = {name: made.member_rows[:, column] for column, name in enumerate(("member_id", "receipts", "cost_before", "cost_after"))}
    days = {"day": pa.array([made.first_day + i for i in range(len(made.days))], pa.int32()).cast(pa.date32())}
    for column, name in enumerate(("receipts", "cost_before", "cost_after")):
        days[name] = pa.array([row[column] for row in made.days], pa.int64())
    paths = []
    for name, columns in (("rules", rules), ("members", members), ("days", days)):
        paths.append(folder / f"{name}.parquet")
        parquet.write_table(pa.table(columns), paths[-1], compression="zstd")
    return paths
