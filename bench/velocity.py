"""What velocity counters cost: one command's, the memory of a counter, the longest single add while days roll, and the error of the sketch.

    python -m bench.velocity                          two million counters
    python -m bench.velocity --counters 50000000      as many as a large chain has
    python -m bench.velocity --quick                  sizes that only show that it runs
    python -m bench.velocity --json                   the same for programs

Not for calls (bench/run.py): the tables alone, in one thread. A command asks 20 counters over 6 keys (14 of calendar windows,
3 sliding, 3 of different ones) and adds to each of them; its tables hold what so many commands before it have left. Then a table of
a day's counters is filled while days go by, each day with its own keys: those of the day before yesterday die and are taken out by
the adds of today. Each add is timed, so what else the machine does is in the longest ones: beside them stand how often this process
was put aside, and the longest of as many adds to a table of nine slots.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

from ledger._probe import VelocityTables
from rich.console import Console
from rich.table import Table

COUNTERS = 2_000_000
COMMANDS = 200_000
SEEDS, DIFFERENT = 80, (2_000, 10_000, 100_000)
DAYS = 6
DAY = 20_543
DAY_S = 86_400
CALENDARS = 0
DAY_ID = 9  # a counter of days
ERROR_MAX = 0.02  # at 10,000


def resident_bytes() -> int:
    """Memory of this process that is really there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def command_cost(counters: int, commands: int) -> dict[str, Any]:
    """Nanoseconds of a command whose tables are as full as they get: 14 in 20 of its new slots are counters."""
    keys = max(100, counters // 20)
    tables = VelocityTables(counters * 2, counters, counters)
    tables.now(DAY * DAY_S, DAY)
    before = time.perf_counter()
    tables.run(keys, keys * 2, 0, False)
    filled = time.perf_counter() - before
    plain = min(tables.run(keys, commands, keys * 2 + number * commands, False) for number in range(3))
    touched = min(tables.run(keys, commands, keys * 2 + (3 + number) * commands, True) for number in range(3))
    stats = tables.stats
    return {"ns": round(plain * 1000 / commands), "ns_touched": round(touched * 1000 / commands), "filled_s": round(filled, 1),
            "counters": stats["counters"], "slidings": stats["slidings"], "distincts": stats["distincts"]}


def days_roll(counters: int) -> dict[str, Any]:
    """A table whose live counters are two days of keys, and what is not yet taken out: each day brings two fifths of what it may hold."""
    before = resident_bytes()
    tables = VelocityTables(counters, 1, 1)
    each, days = counters * 2 // 5, []
    for number in range(DAYS):
        tables.now((DAY + number) * DAY_S, DAY + number)
        put_aside = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        spent, longest, slow, full = tables.fill(CALENDARS, number * each, each, DAY_ID, 1)
        put_aside = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - put_aside
        days.append({"ns": round(spent * 1000 / each), "longest_us": longest, "above_100_us": slow, "put_aside": put_aside,
                     "no_memory": full, "room": tables.room(1, 0, 0), "slots": tables.stats["counters"]})
    bytes_used = resident_bytes() - before
    most = max(day["slots"] for day in days)
    control = VelocityTables(1, 1, 1)
    control.now(DAY * DAY_S, DAY)
    _, longest, slow, _ = control.fill(CALENDARS, 0, each, DAY_ID, 1)
    return {"days": days, "bytes": bytes_used, "slots": most, "bytes_a_counter": round(bytes_used / counters, 1),
            "bytes_a_slot": round(bytes_used / most, 1), "control_longest_us": longest, "control_above_100_us": slow}


def sketch_error(different: int, seeds: int) -> dict[str, Any]:
    """How far so many different ones are off, over seeds."""
    tables = VelocityTables(1, 1, seeds)
    tables.now(DAY * DAY_S, DAY)
    errors = [tables.distincts(seed + 1, DAY_ID, seed * 10_000_000, different) / different - 1 for seed in range(seeds)]
    return {"different": different, "mean_percent": round(sum(errors) / seeds * 100, 3),
            "standard_percent": round(math.sqrt(sum(error * error for error in errors) / seeds) * 100, 3),
            "largest_percent": round(max(map(abs, errors)) * 100, 3)}


def show(found: dict[str, Any]) -> None:
    """The three tables."""
    console, command, roll = Console(), found["command"], found["days"]
    table = Table("a command, 20 counters over 6 keys", "ns", title=f"{command['counters']:,} counters, {command['slidings']:,} sliding, "
                  f"{command['distincts']:,} of different ones")
    table.add_row("asked and added to", f"{command['ns']:,}")
    table.add_row("the same, its keys' reads begun before", f"{command['ns_touched']:,}")
    console.print(table)
    table = Table("day", "ns an add", "longest us", "above 100 us", "put aside", "slots", "no memory",
                  title=f"{roll['bytes_a_counter']} bytes a counter that was planned, {roll['bytes_a_slot']} a slot in use")
    for number, day in enumerate(roll["days"]):
        longest = " ".join(map(str, day["longest_us"][:3]))
        table.add_row(str(number), f"{day['ns']:,}", longest, str(day["above_100_us"]), str(day["put_aside"]), f"{day['slots']:,}",
                      str(day["no_memory"]))
    table.add_row("control", "", " ".join(map(str, roll["control_longest_us"][:3])), str(roll["control_above_100_us"]))
    console.print(table)
    table = Table("different ones", "mean %", "standard %", "largest %", title=f"error of the sketch over {found['seeds']} seeds")
    for row in found["sketch"]:
        table.add_row(f"{row['different']:,}", *(str(row[key]) for key in ("mean_percent", "standard_percent", "largest_percent")))
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures; 0: no pause while days roll (the first two fill fresh memory), and the sketch within its error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--counters", type=int, default=COUNTERS, help="that the table of days may hold; 40 bytes each")
    parser.add_argument("--commands", type=int, default=COMMANDS, help="that are measured, three times")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the sketch")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.quick:
        options.counters, options.commands, options.seeds = 20_000, 2_000, 5
    found = {"days": days_roll(options.counters), "command": command_cost(min(options.counters, COUNTERS), options.commands),
             "sketch": [sketch_error(different, options.seeds) for different in DIFFERENT], "seeds": options.seeds}
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    rolled = found["days"]["days"][2:]
    pause = any(day["above_100_us"] > day["put_aside"] + found["days"]["control_above_100_us"] for day in rolled)
    off = next(row for row in found["sketch"] if row["different"] == 10_000)["largest_percent"] > ERROR_MAX * 100
    return 1 if pause or off or any(day["no_memory"] for day in rolled) else 0


if __name__ == "__main__":
    sys.exit(main())
