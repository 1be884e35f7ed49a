"""The export: every entry exactly once with all that it says, whatever ended the runs before. Real journals, real files."""

from __future__ import annotations

import datetime
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ledger import errors
from ledger.export import DAY_NEVER, ExportRefused, export
from ledger.journal import Damage, read_entry, scan
from tests.ledger import forging
from tests.rules.lived import Lived
from tests.running import ROOT, RunningServer
from tests.shop import PROGRAM, START_US, Shop

SEED = random.randrange(1 << 32)
DAY_US = 86_400_000_000
FIRST_DAY = datetime.date(2026, 9, 20)
PERS = {1: "day", 2: "week", 3: "month", 4: "year", 5: "ever", 6: "birthday", 7: "anniversary year"}
NOTICES = {1: "unknown_store", 2: "unknown_sku", 3: "unknown_category", 4: "unknown_promo_code", 5: "unknown_tender", 6: "unknown_channel"}
PARTS = {1: "device", 2: "cashier", 3: "payment_card", 4: "partner", 5: "store", 6: "till"}
ANSWERS = {2: "mark", 3: "refuse", 4: "challenge", 5: "reduce", 6: "review"}
RUNGS = ("ok", "warned", "limited", "blocked", "excluded")
LISTS = {2: "card", 3: "phone", 4: "email", 5: "app", 6: "device", 7: "till"}
SEGMENTS, FAVOURITES = ["students", "staff"], ["Food/Dairy", "Food/Bakery"]
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def midnight(day: int) -> int:
    """us since 1970 of the day'th day of the forged journals."""
    return (FIRST_DAY - datetime.date(1970, 1, 1)).days * DAY_US + day * DAY_US


def journal_of(folder: Path, days: int, entries: int = 70) -> Path:
    """A journal over some days: groups that hold the last entries of a day and the first of the next, a day without entries, and
    entries at midnight to the microsecond."""
    forge = forging.Forge()
    program = forging.program_entry()
    forge.add(program[:8] + midnight(0).to_bytes(8, "little") + program[16:], time_us=midnight(0))
    times: list[int] = []
    for day in range(days):
        if day == 2:
            continue
        times += sorted([midnight(day), midnight(day + 1) - 1, *(midnight(day) + number * 900_000_001 for number in range(1, entries))])
    for at in range(0, len(times), 9):
        forge.add(*(forging.earn(1 + number % 7, 100, opened=number < 7, request=number + 1, time_us=times[number])
                    for number in range(at, min(at + 9, len(times)))), time_us=times[min(at + 9, len(times)) - 1])
    return forge.write(folder)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All rows of all files, in the files' order."""
    return [row for path in sorted(out.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def time_of(us: int) -> datetime.datetime:
    return EPOCH + datetime.timedelta(microseconds=us)


def day_of(day: int) -> datetime.date | None:
    return None if day == DAY_NEVER else datetime.date(1970, 1, 1) + datetime.timedelta(days=day)


def expected(sequence: int, entry: bytes, wallets: list[str], names: dict[int, list[str]] = {}) -> dict[str, Any]:  # noqa: B006
    """The row of an entry, by the second reader. names: of limits, by version of the programme."""
    value = read_entry(entry)
    context = value.get("context", {})
    reservation = value.get("reservation")

    def moment(name: str) -> datetime.datetime | None:
        return time_of(context[name]) if name in context else None

    return {
        "sequence": sequence, "time": time_of(value["time_us"]), "kind": value["kind"], "member_id": value["member"] or None,
        "opened": value["opened"], "program_version": value["program"],
        "refusal": errors.BY_NUMBER[value["status"]].name if value["status"] else None,
        "refusal_a": value.get("refusal", {}).get("a"), "refusal_b": value.get("refusal", {}).get("b"),
        "request_hash": value["request"] if any(value["request"]) else None,
        "sent_time": moment("sent_time_us"), "purchase_time": moment("business_time_us"),
        "store": context.get("store"), "till": context.get("till"), "business_day": context.get("business_day"),
        "number": context.get("number"), "total_minor": context.get("total_minor"),
        "payment": {None: None, 1: "burn", 2: "capture"}[context.get("payment")],
        "requested_wallet": wallets[context["wallet"]] if "wallet" in context else None, "requested_points": context.get("points"),
        "requested_reservation_id": context.get("reservation_id"), "ttl_us": context.get("ttl_us"),
        "requested_expiry_day": context.get("expiry_day"), "operator": context.get("operator"), "reason": context.get("reason"),
        "postings": [{**row, "wallet": wallets[row["wallet"]]} for row in value.get("postings", ())],
        "lot_changes": [{"wallet": wallets[row["wallet"]], "available_day": day_of(row["available_day"]),
                         "expiry_day": day_of(row["expiry_day"]), "funder": row["funder"],
                         "by_inactivity": row["by_inactivity"], "under_review": row["under_review"], "points": row["points"],
                         "held_points": row["held"]} for row in value.get("lots", ())],
        "lines": expected_lines(value), "awards": [{**row, "wallet": wallets[row["wallet"]]} for row in value.get("awards", ())],
        "wallets": [{**row, "wallet": wallets[row["wallet"]]} for row in value.get("after", ())],
        "reservation": reservation and {
            "reservation_id": reservation["id"], "state": reservation["state"], "wallet": wallets[reservation["wallet"]],
            "reserved_points": reservation["reserved_points"], "captured_points": reservation["captured_points"],
            "expire_time": time_of(reservation["expire_time_us"])},
        "identifier_types": [row["type"] for row in value.get("identifiers", ())],
        "digest": value.get("digest"), "program_hash": value["image"][8:40] if "image" in value else None,
        "program_source": value.get("source"), **expected_of_rules(value, context), **expected_of_limits(value, names),
    }


def expected_of_limits(value: dict[str, Any], names: dict[int, list[str]]) -> dict[str, Any]:
    """The columns of limits, the ladder and the block lists. names: of limits, by version of the programme."""
    def name(number: int) -> str | None:
        return dict(enumerate(names.get(value["program"], ()), start=1)).get(number)

    origin, rung, blocks = value.get("origin"), value.get("rung"), value.get("blocks", {"rows": ()})
    rows = sorted({kind & 7 for _, kind, _, _ in blocks["rows"]})
    return {
        "origin": origin and {"utc_offset_s": origin["offset_s"], **{
            part: origin["parts"][tag].hex() if tag in origin["parts"] else None for tag, part in PARTS.items()},
            "region": origin["region"].hex() if origin["region"] else None},
        "limits": [{"number": row["limit"], "name": name(row["limit"]), "action": ANSWERS[row["answer"]]}
                   for row in value.get("limits", {}).get("above", ())],
        "cut_points": value.get("limits", {}).get("cut"),
        "rung": rung and {"before": RUNGS[rung["before"]], "after": RUNGS[rung["after"]],
                          "end_time": time_of(rung["until_s"] * 1_000_000) if rung["until_s"] else None,
                          "limit_number": rung["limit"] or None, "limit_name": name(rung["limit"])},
        "blocks_version": blocks.get("version"),
        "block_lists": [{"list": LISTS[kind], **{word: sum(op == number and row & 7 == kind for op, row, _, _ in blocks["rows"])
                                                 for number, word in ((1, "added"), (2, "removed"))}} for kind in rows],
    }


def expected_of_rules(value: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """The columns of what rules leave in an entry."""
    receipt, state, attributes = value.get("receipt", {}), value.get("rules_state"), value.get("attributes", {})
    birthday = attributes.get("birthday")
    sets = {name: [place for place in range(128) if words[place // 64] >> place % 64 & 1] for name, words in
            value.get("segments", {"add": [0, 0], "remove": [0, 0]}).items()}
    return {
        "channel": receipt.get("channel") or None, "tenders": receipt.get("tenders", []), "promo_codes": receipt.get("promo_codes", []),
        "quote": context.get("quote"), "only_as_quoted": bool(context["only_as_quoted"]) if "only_as_quoted" in context else None,
        "rules_day": state and day_of(state["day"]), "receipt_number": state and state["receipt"],
        "tier": state and (state["tier_before_name"] or None),
        "tier_after": state and (state["tier_name"] or state["tier_before_name"] or None),
        "tier_until": state and day_of(state["tier_until"]),
        "opened_day": day_of(value["opened_day"]) if "opened_day" in value else None,
        "counters": [{**row, "per": PERS[row["per"]]} for row in value.get("counters", {}).get("rows", ())],
        "campaigns": [{"campaign": row["campaign"], "amount": row["points"], "uses": row["uses"]} for row in value.get("campaigns", ())],
        "days": [{"day": day_of(row["day"]), "receipts": row["receipts"], "spent_minor": row["spent"]}
                 for row in value.get("days", {}).get("rows", ())],
        "segments_added": [SEGMENTS[place] for place in sets["add"]], "segments_removed": [SEGMENTS[place] for place in sets["remove"]],
        "favourites": [FAVOURITES[place] for place in range(64) if attributes["chosen"] >> place & 1] if "chosen" in attributes else None,
        "birthday": None if birthday is None else birthday // 32 * 100 + birthday % 32,
        "birthday_from": day_of(attributes["birthday_from"]) if birthday is not None else None,
        "discounts": value.get("discounts", []), "paid": value.get("paid", []), "variants": value.get("variants", []),
        "entitlements": value.get("entitlements", []), "notice_count": value.get("notices", {}).get("count", 0),
        "notices": [{**row, "kind": NOTICES[row["kind"]]} for row in value.get("notices", {}).get("rows", ())],
    }


def expected_lines(value: dict[str, Any]) -> list[dict[str, Any]]:
    details = {row["line"]: row for row in value.get("line_details", ())}
    return [{**line, "regular_amount_minor": details.get(number, {}).get("regular_amount_minor") or None,
             "weighed": bool(details.get(number, {}).get("flags", 0) & 1)} for number, line in enumerate(value.get("lines", ()), start=1)]


def entries_of(data: Path) -> list[tuple[int, bytes]]:
    return [pair for group in scan(data) for pair in group]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data directory of a service that has done everything, and was stopped."""
    folder = tmp_path_factory.mktemp("lived")
    (folder / "two.yaml").write_text(PROGRAM)
    server = RunningServer(folder / "server", clock=START_US, program=folder / "two.yaml")
    server.start()
    shop = Shop(server, SEED)
    shop.every_kind()
    for _ in range(150):
        shop.step()
        shop.pass_time(shop.chance.choice((1000, 9_000_000, 7 * 3_600_000_000 // 10)))
    assert server.terminate() == 0
    yield server.data


def test_a_row_says_all_that_the_second_reader_finds(lived: Path, tmp_path: Path) -> None:
    export(lived, tmp_path / "out", unfinished=True)
    there = entries_of(lived)
    rows = rows_of(tmp_path / "out")
    assert {row["kind"] for row in rows} >= {"earn", "burn", "reserve", "capture", "release", "commit", "enroll", "expire_lots",
                                             "expire_reservation", "adjust", "link", "unlink", "program", "digest"}
    assert [row["sequence"] for row in rows] == [sequence for sequence, _ in there]
    for row, (sequence, entry) in zip(rows, there, strict=True):
        assert row == expected(sequence, entry, ["points", "stamps"])


def test_a_row_says_what_rules_made_of_a_receipt(tmp_path: Path) -> None:
    shop = Lived()
    shop.everything()
    shop.days(4, SEED)
    print(f"seed {SEED}")
    data = shop.write(tmp_path / "data")
    export(data, tmp_path / "out", unfinished=True)
    rows = rows_of(tmp_path / "out")
    for row, (sequence, entry) in zip(rows, entries_of(data), strict=True):
        assert row == expected(sequence, entry, ["points", "miles"])
    filled = {name for row in rows for name, value in row.items() if value not in (None, [], 0)}
    assert filled >= set(expected_of_rules({}, {})) - {"quote", "only_as_quoted"}, "the shop has not lived through everything"


def test_columns_are_typed_as_the_page_says(lived: Path, tmp_path: Path) -> None:
    made = export(lived, tmp_path / "out", unfinished=True)
    schema = parquet.read_schema(tmp_path / "out" / made.files[0])
    page = (ROOT / "docs" / "export.md").read_text()
    named = [line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")]
    there = {*schema.names, *(f"{column.name}.{field.name}" for column in schema for field in inner_fields(column.type))}
    assert sorted(named) == sorted(there)
    assert schema.field("time").type == pa.timestamp("us", tz="UTC") and schema.field("member_id").type == pa.int64()


def inner_fields(kind: pa.DataType) -> list[pa.Field]:
    kind = kind.value_type if pa.types.is_list(kind) else kind
    return list(kind) if pa.types.is_struct(kind) else []


def test_a_finished_day_is_a_file_and_the_last_one_a_part_when_asked(tmp_path: Path) -> None:
    data, out = journal_of(tmp_path / "data", 4), tmp_path / "out"
    days = [(FIRST_DAY + datetime.timedelta(days=day)).isoformat() for day in (0, 1, 3)]
    made = export(data, out)
    assert made.files == [f"{day}.parquet" for day in days[:2]] == sorted(path.name for path in out.iterdir())
    assert export(data, out).files == []
    made = export(data, out, unfinished=True)
    assert made.files == [f"{days[2]}.part.parquet"]
    assert export(data, out, unfinished=True).files == made.files, "a part is replaced"
    there = entries_of(data)
    rows = rows_of(out)
    assert [row["sequence"] for row in rows] == [sequence for sequence, _ in there]
    for path in out.iterdir():
        for row in parquet.read_table(path, columns=["time"]).to_pylist():
            assert row["time"].date().isoformat() == path.name[:10]


def test_a_part_goes_when_its_day_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(journal_of(tmp_path / "young", 2), out, unfinished=True)
    older = rows_of(out)
    grown = journal_of(tmp_path / "grown", 5)
    export(grown, out, unfinished=True)
    rows = rows_of(out)
    assert rows[:len(older)] == older
    assert [row["sequence"] for row in rows] == [sequence for sequence, _ in entries_of(grown)]
    assert sum(".part." in path.name for path in out.iterdir()) == 1


DRIVER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import pyarrow as pa
from pyarrow import parquet
from ledger import export as e
e.ROW_GROUP_ENTRIES = 25
data, out = Path(sys.argv[1]), Path(sys.argv[2])

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def dying(step):
    if found := look():
        return found
    count = 0
    def wrap(owner, name):
        true = getattr(owner, name)
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            found = true(*arguments, **named)
            return found
        setattr(owner, name, call)
    for owner, name in ((parquet.ParquetWriter, "write_table"), (parquet.ParquetWriter, "close"), (os, "fsync"), (Path, "replace"),
                        (Path, "unlink")):
        wrap(owner, name)
    e.export(data, out, unfinished=True)
    return 0

def look():
    # What a reader finds at any time: rising, without a gap, nothing twice.
    sequences = []
    for path in sorted(out.glob("*.parquet")):
        sequences += parquet.ParquetFile(path).read(columns=["sequence"], use_threads=False)["sequence"].to_pylist()
    return 0 if sequences == list(range(1, len(sequences) + 1)) else 7

deaths = 0
for step in range(1, 1000):
    # Every second death begins with what the one before has left, every other one anew.
    if step % 2:
        for path in out.glob("*"):
            path.unlink()
    code = child(lambda: dying(step))
    if code == 7:
        sys.exit(f"before step {step}: readers see a wrong sequence")
    if code == 0 and step % 2:
        break
    if code not in (0, 9):
        sys.exit(f"step {step} ended with {code}")
    deaths += code == 9
print(json.dumps({"deaths": deaths}))
"""


def test_an_export_killed_at_every_step_goes_on_and_is_never_seen_wrong(tmp_path: Path) -> None:
    data, out = journal_of(tmp_path / "data", 4, entries=40), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", DRIVER, str(data), str(out), str(ROOT)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    deaths = json.loads(done.stdout)["deaths"]
    print(f"{deaths} deaths")
    assert deaths >= 15
    assert rows_of(out) == [expected(sequence, entry, ["points"]) for sequence, entry in entries_of(data)]
    assert not list(out.glob("*.new"))


def test_an_export_of_another_journal_or_history_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(journal_of(tmp_path / "one", 3), out)
    other = journal_of(tmp_path / "other", 3, entries=71)
    with pytest.raises(ExportRefused, match="of another history"):
        export(other, out)
    (other / "FORMAT").write_text(f"daybook 1\n{bytes(16).hex()}\n")
    with pytest.raises(Damage, match="belongs to directory"):
        export(other, out)


def test_missing_and_foreign_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    data, out = journal_of(tmp_path / "data", 5), tmp_path / "out"
    made = export(data, out)
    whole = (out / made.files[0]).read_bytes()
    (out / made.files[0]).write_bytes(whole[:100])
    with pytest.raises(ExportRefused, match="remove it, and a new run writes it again"):
        export(data, out)
    (out / made.files[0]).unlink()
    with pytest.raises(ExportRefused, match="a file before it is missing"):
        export(data, out)
    parquet.write_table(pa.table({"a": [1]}), out / made.files[0])
    with pytest.raises(ExportRefused, match="no file of an export"):
        export(data, out)
    (out / made.files[0]).write_bytes(whole)
    assert export(data, out).files == []


def test_a_damaged_journal_ends_the_export_and_leaves_no_half_day(tmp_path: Path) -> None:
    import lmdb

    from ledger import limits

    data, out = journal_of(tmp_path / "data", 4), tmp_path / "out"
    keys = [group.first_sequence for group in scan(data)]
    with lmdb.open(str(data / "journal"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4) as env:
        groups = env.open_db(b"groups", integerkey=True)
        with env.begin(write=True) as transaction:
            key = keys[len(keys) // 2].to_bytes(8, "little")
            record = bytearray(transaction.get(key, db=groups))
            record[200] ^= 1
            transaction.put(key, bytes(record), db=groups)
    with pytest.raises(Damage, match="does not fit"):
        export(data, out)
    assert [path.name for path in out.iterdir()] == [f"{FIRST_DAY.isoformat()}.parquet"]


def test_an_empty_journal_makes_no_files(tmp_path: Path) -> None:
    assert export(forging.Forge().write(tmp_path / "data"), tmp_path / "out", unfinished=True).files == []
