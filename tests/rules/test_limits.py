"""Limits: what the checker says of wrong ones, their records against ones computed by hand, and what an image may say of them."""

from __future__ import annotations

import hashlib
import random
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from ledger._probe import LoadedImage

from ledger.rules import apart, check, compile_file, compile_source, difference, lower_velocity, syntax, tree, words
from ledger.rules.image2 import HEADER, PLACE, Image, ImageDamaged, Kind
from ledger.rules.lower2 import LimitExceeded, lower_programme
from ledger.rules.syntax import ProgramError
from tests.rules import fuzz_images, generate
from tests.rules.ours import FRAUD, PROGRAMMES, ROOT
from tests.rules.test_examples import plain
from tests.rules.test_schema import VALIDATOR, loaded

TOP = """\
programme: Test
currency: EUR
zone: Europe/Warsaw
wallets: [{name: points, scale: 1}]
segments: [students, staff]
stores: [{store: "1", region: north}, {store: "2", region: south}, {store: "3"}]
rules: []
limits:
"""
TOP_LINES = TOP.count("\n")
GOOD = "name: A, of: earns, per: member, window: day, at_most: 3, then: mark"
often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def limits_of(rows: str, top: str = TOP) -> tuple[tree.Limit, ...]:
    return check.check_source((top + rows).encode(), "p.yaml").limits


def mistakes(rows: str, top: str = TOP, folder: Path | None = None) -> list[str]:
    """What is wrong, line 1 being the first below the top."""
    with pytest.raises(ProgramError) as raised:
        check.check_source((top + rows).encode(), "p.yaml", folder)
    found = []
    for line in str(raised.value).splitlines():
        number, rest = line.removeprefix("p.yaml:").split(":", 1)
        found.append(f"{int(number) - top.count(chr(10))}:{rest}")
    return found


def one(**keys: str) -> str:
    """A limit as YAML; `of_` and the like would be keywords, so all keys are given as they are."""
    said = {"name": "A", "of": "earns", "per": "member", "window": "day", "at_most": "3", "then": "mark"} | keys
    return "- {" + ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None) + "}"


OF = "earns, burns, reservations, enrolments, refusals, balances, unknown_balances, returns"
WRONG = [
    (one(nam="B"), "1:74: limits[0].nam: unknown key; did you mean 'name'?"),
    (one(name=None), "1:3: limits[0].name: is missing, must be set"),
    (one(name="x" * 65), "1:10: limits[0].name: must be a name of 1..64 bytes without space at its ends, was 'xxx"),
    (one(of=None), "1:3: limits[0].of: is missing, must be set"),
    (one(of="earn"), f"1:17: limits[0].of: must be one of {OF}, was 'earn'; did you mean 'earns'?"),
    (one(of="[earns, earns]"), "1:25: limits[0].of: 'earns' stands twice, must stand once"),
    (one(of="[]"), "1:17: limits[0].of: must have 1..8 values, has 0"),
    (one(of="[returns, balances]"),
     "1:17: limits[0].of: balances and unknown_balances are look-ups, which no entry knows, must not stand beside returns"),
    (one(of="returns", per="identifier"), "1:31: limits[0].per: identifier has no meaning of returns: a return names a receipt, no member"),
    (one(of="returns", per="basket"), "1:31: limits[0].per: basket has a meaning only of earns: returns have no lines"),
    (one(of="[earns, returns]", measure="money"), "limits[0].measure: money has no meaning of returns, must be of earns"),
    (one(of="returns", measure="quantity", window="receipt"), "limits[0].measure: quantity has no meaning of returns, must be of earns"),
    (one(of="returns", then="challenge"), "limits[0].then: challenge has a meaning only of burns and reservations, was of returns"),
    (one(of="returns", then="reduce"), "limits[0].then: reduce has a meaning only of earns alone, was of returns"),
    (one(gives_back="perhaps"), "1:86: limits[0].gives_back: "),
    (one(gives_back="true", of="returns"),
     "limits[0].gives_back: has no meaning of returns, must be of earns or burns or reservations"),
    (one(gives_back="true", of="[earns, refusals]"), "limits[0].gives_back: has no meaning of refusals"),
    (one(gives_back="true", of="balances"), "limits[0].gives_back: has no meaning of balances"),
    (one(gives_back="true", window="1 hour"), "limits[0].gives_back: has a meaning only with one of the windows day, week, month, ever"),
    (one(gives_back="true", window="receipt", at_most="0"), "limits[0].gives_back: has a meaning only with one of the windows day"),
    (one(gives_back="true", measure="stores"), "limits[0].gives_back: has no meaning with measure stores: who was there has been there"),
    (one(of="[burns, balances]"),
     "1:17: limits[0].of: balances and unknown_balances are look-ups, which no entry knows, must not stand beside burns"),
    (one(measure="point"),
     "1:83: limits[0].measure: must be one of count, points, money, members, stores, quantity, regions, was 'point'; "
     "did you mean 'points'?"),
    (one(measure=""), "1:74: limits[0].measure: must be one of count, points, money, members, stores, quantity, regions, was nothing"),
    (one(per=None), "1:3: limits[0].per: is missing, must be set"),
    (one(per="card"),
     "1:29: limits[0].per: must be one of member, identifier, payment_card, device, till, cashier, store, partner, hour, "
     "basket, was 'card'"),
    (one(per="[member, till, store, hour]"), "1:29: limits[0].per: must have 1..3 values, has 4"),
    (one(per="hour"), "1:29: limits[0].per: must not be hour alone: one counter would be all members'"),
    (one(window="yesterday"),
     "1:45: limits[0].window: must be receipt, day, week, month, ever, or `10 minutes`, `2 hours` from 1 minute to 24 hours, "
     "was 'yesterday'"),
    (one(window="0 minutes"), "was '0 minutes'"),
    (one(window="25 hours"), "was '25 hours'"),
    (one(window="1441 minutes"), "was '1441 minutes'"),
    (one(window="2 days"), "was '2 days'"),
    (one(window="wek"), "did you mean 'week'?"),
    (one(window="sliding"), "was 'sliding'"),
    (one(segments="student"), "'student' is no segment of this programme, must be one of staff, students; did you mean 'students'?"),
    (one(then="block"), "1:68: limits[0].then: must be one of shadow, mark, refuse, challenge, reduce, review, was 'block'"),
    (one(rung="banned"), "limits[0].rung: must be one of warned, limited, blocked, excluded, was 'banned'"),
    (one(rung="warned", lasts="1 month"),
     "limits[0].lasts: must be 1..3660 days or 1..8760 hours or 1..1440 minutes, such as `30 days`, was '1 month'"),
    (one(rung="warned", lasts="0 days"), "was '0 days'"),
    (one(at_most=None), "1:3: limits[0]: must have one of at_most, at_most_means, has none"),
    (one(at_most_means="2"), "limits[0].at_most_means: must have one of at_most, at_most_means, has both"),
    (one(at_most="1.5"), "1:59: limits[0].at_most: must be a whole number from 0 to 1000000000000000, was '1.5'"),
    (one(at_most="-1"), "1:59: limits[0].at_most: must be a number, was '-1'"),
    (one(at_most="1.55", measure="points"),
     "1:59: limits[0].at_most: must be a number of points from 0.0 to 100000000000000.0 with at most 1 decimals, was '1.55'"),
    (one(at_most="1.555", measure="money"), "must be an amount from 0.00 to 10000000000000.00 with at most 2 decimals, was '1.555'"),
    (one(at_most="4294967296", window="1 hour"),
     "must be a whole number from 0 to 4294967295 (a sliding window counts no further), was '4294967296'"),
    (one(at_most="42949672.96", measure="money", window="1 hour"),
     "to 42949672.95 with at most 2 decimals (a sliding window counts no further)"),
    (one(at_most="100001", measure="stores"), "must be a whole number from 0 to 100000, was '100001'"),
    (one(at_most="1.0001", measure="quantity", window="receipt"), "must be a quantity from 0.000 to 1000000.000 with at most 3 decimals"),
    (one(at_most="1", window="receipt"),
     "1:63: limits[0].at_most: one command counts 1 and is never above 1, must be 0 (none at all) or window another one"),
    (one(after="5"), "limits[0].after: has no meaning without at_most_means"),
    (one(measure="stores", window="10 minutes", at_most="13"),
     "limits[0].at_most: must be a whole number from 0 to 12 (a sliding window tells no more apart), was '13'"),
    (one(at_most=None, at_most_means="8", measure="money", window="receipt"),
     "limits[0].after: is missing, must be set with at_most_means"),
    (one(at_most=None, at_most_means="8", after="1", measure="money", window="receipt"),
     "after: must be a whole number, 2..1000000, was '1'"),
    (one(at_most=None, at_most_means="0", after="5", measure="money", window="receipt"),
     "at_most_means: must be a number from 0.001 to 1000.000"),
    (one(at_most=None, at_most_means="8", after="5", measure="money"),
     "at_most_means: has a meaning only with measure money and window receipt"),
    (one(at_most=None, at_most_means="8", after="5", window="receipt"),
     "at_most_means: has a meaning only with measure money and window receipt"),
    (one(measure="quantity"), "limits[0].measure: quantity is that of one line, has a meaning only with window receipt"),
    (one(measure="quantity", of="burns", window="receipt"), "limits[0].measure: quantity has no meaning of burns, must be of earns"),
    (one(measure="money", of="[earns, burns]"), "limits[0].measure: money has no meaning of burns, must be of earns"),
    (one(measure="points", of="[refusals, earns]"),
     "limits[0].measure: points has no meaning of refusals, must be of earns or burns or reservations or returns"),
    (one(measure="points", of="enrolments", per="store"), "limits[0].measure: points has no meaning of enrolments"),
    (one(measure="points", of="balances"), "limits[0].measure: points has no meaning of balances"),
    (one(measure="members", of="balances", per="till"), "limits[0].measure: members has no meaning of balances"),
    (one(measure="stores", window="receipt"), "1:45: limits[0].window: must be a time with measure stores: a receipt has only one"),
    (one(measure="members", window="receipt", per="till"), "limits[0].window: must be a time with measure members"),
    (one(measure="members"), "1:29: limits[0].per: member has no meaning with measure members: a member is one"),
    (one(measure="members", per="[identifier, till]"),
     "per: identifier has no meaning with measure members: an identifier names one member"),
    (one(measure="stores", per="store"), "1:29: limits[0].per: store has no meaning with measure stores: a store is one"),
    (one(measure="stores", per="[till, member]"), "per: till has no meaning with measure stores: a till is in one store"),
    (one(measure="regions", per="store"), "1:29: limits[0].per: store has no meaning with measure regions: a store is in one region"),
    (one(measure="regions", per="[till, member]"), "per: till has no meaning with measure regions: a till is in one region"),
    (one(measure="regions", window="receipt"), "1:45: limits[0].window: must be a time with measure regions: a receipt has only one"),
    (one(measure="regions", window="20 minutes", at_most="13"),
     "limits[0].at_most: must be a whole number from 0 to 12 (a sliding window tells no more apart), was '13'"),
    (one(measure="regions", at_most="100001"), "must be a whole number from 0 to 100000, was '100001'"),
    (one(measure="regions", of="balances"), "limits[0].measure: regions has no meaning of balances"),
    (one(gives_back="true", measure="regions"),
     "limits[0].gives_back: has no meaning with measure regions: who was there has been there"),
    (one(measure="members", of="enrolments", per="device"),
     "measure: members has no meaning of enrolments: each opens another member, must be count"),
    (one(per="[member, basket]", of="[earns, burns]"), "limits[0].per: basket has a meaning only of earns: burns have no lines"),
    (one(per="basket", window="receipt", at_most="0"), "limits[0].per: basket has no meaning with window receipt: nothing is added up"),
    (one(per="[store, hour]", window="receipt", at_most="0"), "per: hour has no meaning with window receipt: nothing is added up"),
    (one(of="enrolments"), "1:34: limits[0].per: member has no meaning of enrolments: a member is opened once"),
    (one(of="enrolments", per="[identifier, till]"),
     "limits[0].per: identifier has no meaning of enrolments: an identifier opens one account"),
    (one(of="enrolments", per="till", segments="staff"), "segments: has no meaning of enrolments: a member who was just opened is in none"),
    (one(of="[balances, unknown_balances]"), "per: member has no meaning of unknown_balances: none was found"),
    (one(of="unknown_balances", per="till", segments="staff"), "segments: has no meaning of unknown_balances: there is no member"),
    (one(of="balances", per="[store, hour]"), "per: hour has no meaning of balances: look-ups are counted by when they come"),
    (one(of="balances", per="basket"), "per: basket has a meaning only of earns: balances have no lines"),
    (one(of="balances", window="receipt", at_most="0"), "1:48: limits[0].window: must not be receipt of look-ups: must be a time"),
    (one(then="reduce", of="burns", measure="points"), "then: reduce has a meaning only of earns alone, was of burns"),
    (one(then="reduce", measure="money"),
     "then: reduce has a meaning only with measure points (or count: then nothing is given), was money"),
    (one(then="review", of="[earns, burns]"), "then: review has a meaning only of earns alone, was of earns, burns"),
    (one(then="challenge"), "1:68: limits[0].then: challenge has a meaning only of burns and reservations, was of earns"),
    (one(then="challenge", of="[burns, earns]"), "then: challenge has a meaning only of burns and reservations, was of earns, burns"),
    (one(then="challenge", of="balances"), "then: challenge has a meaning only of burns and reservations, was of balances"),
    (one(then="refuse", of="refusals"), "then: refuse has no meaning of refusals alone, which are refused already; must be shadow or mark"),
    (one(then="shadow", rung="warned"), "limits[0].rung: must not be set with shadow, which only counts"),
    (one(of="balances", rung="warned"),
     "limits[0].rung: has no meaning of balances: a look-up writes no entry that could change it"),
    (one(of="enrolments", per="till", then="refuse", rung="warned"), "rung: has no meaning with an enrolment that is refused"),
    (one(lasts="7 days"), "limits[0].lasts: has a meaning only with rung, must not be set"),
    (one() + "\n" + one(window="week"), "2:10: limits[1].name: 'A' is taken by limits[0], must be another name"),
    (one() + "\n" + one(name="B"), "2:3: limits[1]: says the same as 'A', must say something else or be left out"),
    (one(per="[till, member]", of="[burns, earns]") + "\n" + one(name="B", per="[member, till]", of="[earns, burns]"),
     "2:3: limits[1]: says the same as 'A'"),
    ("- 5",
     "1:3: limits[0]: must be a mapping with the keys name, of, measure, per, window, segments, gives_back, at_most, "
     "at_most_means, after, then, rung, lasts, was '5'"),
    ("  file: fraud.yaml", "1:3: limits: must be a list of limits, was a mapping"),
]


@pytest.mark.parametrize(("rows", "expected"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_limit_is_one_clear_error(rows: str, expected: str) -> None:
    found = mistakes(rows)
    assert len(found) == 1 and expected in found[0], found
    if expected[0].isdigit():
        assert found[0].startswith(expected), found


def test_mistakes_of_all_limits_are_told_together():
    found = mistakes(one(then="challenge") + "\n" + one(name="B", window="x") + "\n" + one(name="C", measure="money", of="burns",
                                                                                           lasts="1 day"))
    assert [line.split(": ")[0] + ": " + line.split(": ")[1] for line in found] == [
        "1:68: limits[0].then", "2:45: limits[1].window", "3:83: limits[2].measure", "3:97: limits[2].lasts"]


def test_what_may_look_wrong_and_is_right():
    for keys in ({"at_most": "0"}, {"at_most": "0", "window": "receipt"}, {"then": "reduce"}, {"of": "[earns, refusals]", "then": "refuse"},
                 {"of": "[earns, burns, reservations, refusals]", "measure": "members", "per": "[till, hour]"},
                 {"at_most": "4294967295", "window": "24 hours"}, {"window": "1440 minutes"}, {"per": "[member, hour]"},
                 {"of": "unknown_balances", "per": "identifier", "window": "1 minute"}, {"of": "refusals", "rung": "blocked"}):
        assert len(limits_of(one(**keys))) == 1, keys
    assert limits_of(one() + "\n" + one(name="B", at_most="9", then="shadow")), "a weaker answer above a stronger bound"
    assert check.check_source(TOP.replace("limits:\n", "limits: []\n").encode()).limits == ()


def test_more_limits_or_counters_than_there_is_room_for():
    rows = [one(name=f"L{i}", at_most=str(i)) for i in range(257)]
    assert len(limits_of("\n".join(rows[:256]))) == 256
    assert mistakes("\n".join(rows)) == ["1:1: limits: must have 0..256 limits, has 257"]
    rows = [one(name=f"L{i}", window=f"{i + 1} minutes") for i in range(66)]
    assert len(check.check_source((TOP + "\n".join(rows[:64])).encode()).counters) == 64
    found = mistakes("\n".join(rows))
    assert len(found) == 1 and found[0].startswith("65:3: limits[64]: counts what no limit before it does and needs counter 65, at most 64")
    means = one(name="M", at_most=None, at_most_means="2", after="2", measure="money", window="receipt")
    assert mistakes("\n".join([*rows[:63], means]))[0].startswith("64:3: limits[63]: counts what no limit before it does")
    lifetime = one(name="E", measure="money", window="ever", at_most="9")
    assert limits_of("\n".join([*rows[:62], means, lifetime])), "the money of all time is one of the two that a mean needs"


NOWHERE = ("regions has no meaning: no store of the programme has a region; list its stores with the region of each "
           "(`stores: [{store: CODE, region: NAME}, ...]`)")
WITHOUT = [TOP.replace(', region: north', '').replace(', region: south', ''), TOP.replace(TOP.splitlines()[5] + "\n", "")]


@pytest.mark.parametrize("top", WITHOUT, ids=["stores without regions", "no stores"])
def test_regions_are_counted_where_some_store_has_one(top, tmp_path):
    assert mistakes(one(measure="regions"), top) == [f"1:83: limits[0].measure: {NOWHERE}"]
    (tmp_path / "mine.yaml").write_text(f"limits:\n  {one(measure='regions')}\n")
    filed = top.replace("limits:\n", "limits: mine.yaml\n")
    assert mistakes("", filed, tmp_path) == [f"0:9: limits: mine.yaml:2:85: limits[0].measure: {NOWHERE}"]
    assert len(limits_of(one(measure="regions"))) == len(limits_of(one(measure="stores"), top)) == 1


def test_the_stores_of_a_file_have_regions_too(tmp_path):
    (tmp_path / "stores.csv").write_text("store,region\n1,north\n2,\n")
    top = TOP.replace(TOP.splitlines()[5], "stores: {file: stores.csv}")
    assert len(check.check_source((top + one(measure="regions")).encode(), "p.yaml", tmp_path).limits) == 1
    (tmp_path / "stores.csv").write_text("store,region\n1,\n2,\n")
    assert mistakes(one(measure="regions"), top, tmp_path) == [f"1:83: limits[0].measure: {NOWHERE}"]


# --- a file beside the programme ------------------------------------------------------------------------------------------

FILED = TOP.replace("limits:\n", "limits: mine.yaml\n")
FILED_AT = "p.yaml:8:9: limits: "


def test_limits_in_a_file_are_those_in_the_programme(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"# ours\nlimits:\n  {one(segments='staff')}\n  {one(name='B', measure='points', at_most='1.5')}\n")
    inline = check.check_source((TOP + one(segments="staff") + "\n" + one(name="B", measure="points", at_most="1.5")).encode())
    (tmp_path / "p.yaml").write_text(FILED)
    assert compile_file(tmp_path / "p.yaml").program == inline and len(inline.limits) == 2
    assert [(where, node.value) for where, node in syntax.tables(syntax.parse(FILED.encode(), "p"))] == [("limits", "mine.yaml")]
    assert syntax.tables(syntax.parse(TOP.encode(), "p")) == []


@pytest.mark.parametrize(("content", "expected"), [
    (None, "mine.yaml cannot be read: No such file or directory"),
    ("", "mine.yaml:1:1: the file is empty, must be a mapping that begins with `limits:`"),
    ("limits: other.yaml\n", "mine.yaml:1:9: limits: must be the list of limits here: a file cannot name another one, was 'other.yaml'"),
    ("limits:\n", "mine.yaml:1:1: limits: must be set, was nothing"),
    ("limit: []\n", "mine.yaml:1:1: limit: unknown key; did you mean 'limits'?"),
    ("limits: []\nrules: []\n", "mine.yaml:2:1: rules: unknown key; known are limits"),
    ("- 1\n", "mine.yaml:1:1: the file must be a mapping of keys to values"),
    ("limits: [&a 1]\n", "mine.yaml:1:10: anchors and aliases"),
    ("limits: [", "not YAML"),
    ("limits:\n  " + one(segments="nobody") + "\n", "mine.yaml:2:86: limits[0].segments: 'nobody' is no segment of this programme"),
    ("#" * (1 << 20) + "\n", "mine.yaml:1:1: the file must have at most 1048576 bytes"),
])
def test_a_wrong_file_of_limits_is_told_where_the_programme_names_it(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ProgramError) as raised:
        check.check_source(FILED.encode(), "p.yaml", tmp_path)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(FILED_AT) for line in lines) and expected in lines[0], lines


def test_mistakes_of_a_file_stand_in_its_order(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"limits:\n  {one(window='x', then='y')}\n  {one(name='B', then='challenge')}\n  {one(name='B')}\n")
    with pytest.raises(ProgramError) as raised:
        check.check_source(FILED.encode(), "p.yaml", tmp_path)
    assert [line.removeprefix(FILED_AT).split(": ")[0] for line in str(raised.value).splitlines()] == [
        "mine.yaml:2:47", "mine.yaml:2:68", "mine.yaml:3:70", "mine.yaml:4:12"]


def test_a_programme_that_is_no_file_has_none_beside_it():
    assert mistakes("", FILED) == ["0:9: limits: a file can only be read where the programme itself is a file"]


def test_a_file_of_limits_travels_with_the_programme(tmp_path):
    sent = (("mine.yaml", f"limits:\n  {one()}\n".encode()),)
    done = apart.run(apart.Job(FILED.encode(), sent))
    assert not done.mistakes and Image(done.image)[Kind.LIMITS]["name"].tolist() == [b"A"]
    assert apart.run(apart.Job(FILED.encode())).mistakes == (
        "source:8:9: limits: must be one of the files that were sent with it (none), was 'mine.yaml'",)
    outside = FILED.replace("mine.yaml", "/etc/passwd").encode()
    assert "must be one of the files that were sent with it (mine.yaml), was '/etc/passwd'" in apart.run(apart.Job(outside,
                                                                                                                   sent)).mistakes[0]


# --- to the tree, to bytes ------------------------------------------------------------------------------------------------

MANY = "\n".join([
    one(name="First", of="[burns, earns]", per="[till, member]", window="2 hours", segments="[staff]", at_most="7", then="refuse",
        rung="limited", lasts="7 days"),
    one(name="Jump", per="[member, identifier]", measure="money", window="receipt", at_most=None, at_most_means="2.5", after="5",
        then="review"),
    one(name="Same keys", per="[identifier, member]", measure="money", window="ever", at_most="12.34", then="shadow"),
    one(name="Line", measure="quantity", window="receipt", at_most="1.5", then="mark", rung="excluded"),
    one(name="Look", of="unknown_balances", per="device", window="1 minute", at_most="0", then="mark"),
    one(name="Softer", of="[earns, burns]", per="[member, till]", window="120 minutes", segments="staff", at_most="3"),
    one(name="Points", of="reservations", measure="points", window="month", at_most="1.5", then="challenge"),
    one(name="Cut", measure="count", window="week", at_most="1", then="reduce", per="[member, basket, hour]"),
    one(name="x" * 64, of="enrolments", per="partner", measure="stores", at_most="9"),
    one(name="Distant", measure="regions", window="20 minutes", at_most="1"),
])


def test_the_tree_says_what_the_limits_say():
    first, jump, same, line, look, softer, points, cut, last, distant = limits_of(MANY)
    staff = frozenset({"staff"})
    assert first == tree.Limit("First", tree.Counter(("earns", "burns"), "count", ("member", "till"), "sliding", 7200, staff), 7, 0,
                               "refuse",
                               "limited", 604_800)
    assert jump.counts == tree.Counter(("earns",), "money", ("member", "identifier"), "receipt") and (jump.at_most,
                                                                                                      jump.mean_after) == (2500, 5)
    assert [(counter.measure, counter.window) for counter in jump.counters] == [("money", "ever"), ("count", "ever")]
    assert same.counts == jump.counters[0] and same.at_most == 1234 and line.counters == () and line.at_most == 1500
    assert softer.counts == first.counts and look.counts.volatile and not first.counts.volatile
    assert (points.at_most, last.counts.measure, cut.counts.per) == (15, "stores", ("member", "hour", "basket"))
    assert (distant.counts.measure, tree.MEASURES.index("regions")) == ("regions", 6), "the numbers of the others stay"
    assert tree.counter_text(first.counts) == "of earns burns\nmeasure count\nper member till\nwindow sliding 7200\nsegment staff\n"
    assert tree.counter_text(same.counts) == "of earns\nmeasure money\nper member identifier\nwindow ever\n"


def velocity(text: str, window: int, of: int, keys: int, measure: int, window_s: int = 0, flags: int = 0, segments: int = 0) -> bytes:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") // 8 * 8 + window
    return struct.pack("<IIHHBBB17xQQ", number, window_s, of, keys, window, measure, flags, segments, 0)


def limit(name: bytes, at_most: int, counter: int, keys: int, of: int, measure: int, action: int, window: int, segments: int = 0,
          means: tuple[int, int, int] = (0, 0, 0), rung: int = 0, rung_s: int = 0) -> bytes:
    return struct.pack("<64sqQQIIIIIHHBBBB28x", name, at_most, segments, 0, counter, *means, rung_s, keys, of, measure, action,
                       rung,
                       window)


def print_of(region: str) -> int:
    return int.from_bytes(hashlib.sha256(region.encode()).digest()[:4], "little")


def test_records_are_those_computed_by_hand():
    data = lower_programme(check.check_source((TOP + MANY).encode()))
    image = Image(data)
    assert image[Kind.VELOCITY].tobytes() == b"".join([
        velocity("of earns burns\nmeasure count\nper member till\nwindow sliding 7200\nsegment staff\n", 5, 3, 17, 1, 7200, 0, 2),
        velocity("of earns\nmeasure money\nper member identifier\nwindow ever\n", 4, 1, 3, 3),
        velocity("of earns\nmeasure count\nper member identifier\nwindow ever\n", 4, 1, 3, 1),
        velocity("of unknown_balances\nmeasure count\nper device\nwindow sliding 60\n", 5, 64, 8, 1, 60, 1),
        velocity("of reservations\nmeasure points\nper member\nwindow month\n", 3, 4, 1, 2),
        velocity("of earns\nmeasure count\nper member hour basket\nwindow week\n", 2, 1, 1 + 256 + 512, 1),
        velocity("of enrolments\nmeasure stores\nper partner\nwindow day\n", 1, 8, 128, 5),
        velocity("of earns\nmeasure regions\nper member\nwindow sliding 1200\n", 5, 1, 1, 7, 1200),
    ])
    assert image[Kind.LIMITS].tobytes() == b"".join([
        limit(b"First", 7, 1, 17, 3, 1, 3, 5, 2, rung=2, rung_s=604_800),
        limit(b"Jump", 2500, 0, 3, 1, 3, 6, 0, means=(2, 3, 5)),
        limit(b"Same keys", 1234, 2, 3, 1, 3, 1, 4),
        limit(b"Line", 1500, 0, 1, 1, 6, 2, 0, rung=4),
        limit(b"Look", 0, 4, 8, 64, 1, 2, 5),
        limit(b"Softer", 3, 1, 17, 3, 1, 2, 5, 2),
        limit(b"Points", 15, 5, 1, 4, 2, 4, 3),
        limit(b"Cut", 1, 6, 1 + 256 + 512, 1, 1, 5, 2),
        limit(b"x" * 64, 9, 7, 128, 8, 5, 2, 1),
        limit(b"Distant", 1, 8, 1, 1, 7, 2, 5),
    ])
    assert image[C].tobytes() == b"".join(struct.pack("<HxxI", 0, number) for number in (0, print_of("north"), print_of("south"), 0))
    read = LoadedImage(data)
    assert [row[:2] for row in read.velocity] == [(int(row["id"]), int(row["of"])) for row in image[Kind.VELOCITY]]
    assert read.bounds[0] == (b"First", 7, 1, 0, 0, 0, 3, 2, 604_800) and read.bounds[8][0] == b"x" * 64
    assert read.bounds[1] == (b"Jump", 2500, 0, 2, 3, 5, 6, 0, 0)


def test_segments_fill_both_words():
    names = [f"s{i}" for i in range(128)]
    programme = check.check_source((TOP.replace("[students, staff]", str(names)) + one(segments="[s0, s63, s64, s127]")).encode())
    image = lower_programme(programme)
    assert Image(image)[Kind.LIMITS]["segments"].tolist() == [[1 | 1 << 63, 1 | 1 << 63]]
    assert LoadedImage(image).velocity[0][-1] == 1 | 1 << 63 | 1 << 64 | 1 << 127


def test_a_counter_goes_on_under_another_name_bound_and_answer():
    before, after = (Image(lower_programme(check.check_source((TOP + rows).encode())))[Kind.VELOCITY]
                     for rows in (one(), one(name="Other", at_most="9", then="refuse", rung="warned")))
    assert before.tobytes() == after.tobytes()
    for keys in ({"window": "week"}, {"of": "burns"}, {"per": "till"}, {"measure": "money"}, {"segments": "staff"}, {"window": "1 hour"}):
        other = Image(lower_programme(check.check_source((TOP + one(**keys)).encode())))[Kind.VELOCITY]
        assert other["id"][0] != before["id"][0] and other["id"][0] & 7 == other["window"][0], keys


def test_counters_that_cannot_be_told_apart_need_something_else(monkeypatch):
    programme = check.check_source((TOP + one() + "\n" + one(name="B", of="burns")).encode())
    monkeypatch.setattr(lower_velocity, "counter_id", lambda counter: 9)
    with pytest.raises(LimitExceeded, match=r"limits\[1\]: the short hashes of what 'B' and 'A' count cannot be told apart"):
        lower_programme(programme)


def test_regions_that_cannot_be_told_apart_need_another_name():
    one_name, other = "region 10142", "region 2124"
    assert print_of(one_name) >> 4 == print_of(other) >> 4, "a sliding window keeps 28 bits"
    top = TOP.replace("north", one_name).replace("south", other)
    with pytest.raises(LimitExceeded, match=f"stores: the short hashes of the regions '{one_name}' and '{other}' cannot be told apart, "
                                            "one must have another name"):
        lower_programme(check.check_source((top + one(measure="regions")).encode()))
    lower_programme(check.check_source((top + one(measure="stores")).encode()))


def test_regions_stand_in_an_image_only_where_a_limit_counts_them():
    with_regions, without = (lower_programme(check.check_source((TOP + one(measure=measure)).encode()))
                             for measure in ("regions", "stores"))
    assert Image(without)[C].tobytes() == bytes(16), "one class of all stores that are known"
    assert LoadedImage(with_regions) and not taken(with_field(C, 1, "region", 1, without))
    for row in (1, 2):
        assert taken(with_regions)
        with_regions = with_field(C, row, "region", 0, with_regions)
    assert not taken(with_regions), "it would count nothing"


# Of before there were limits. A programme that changes gets a new one here; a compiler that changes must not.
HASHES = {"base": "d2eebe655556bbfd041d0d20630f2dd6966a2340b5f9e0a527f8af6800e440bc",
          "discount": "47f0a0beca22c675d76ff9f53175ec65b88c735dbc331c6707918c7ff7c97fb6",
          "dunnhumby": "038b3f50c0026e0362863b09f4e6372a1f12dfa417dce7504718d3b81c82578b",
          "grocery": "239d706a7c70c5fad618e35e0b0737878c6c93c2a1ea45eb4c3b430c0b6e3744",
          "pos-bonus": "b845b725812dc74a9de7fd6c071cf7364d45b504e6ea46a5f2326813fad31a28"}


def test_programmes_without_limits_keep_their_bytes():
    compiled = {path.stem: compile_file(path) for path in PROGRAMMES}
    assert {name: one.hash for name, one in compiled.items()} == HASHES
    for one_of in compiled.values():
        image = Image(one_of.image)
        assert image.header["section_count"] == 42 and not len(image[Kind.VELOCITY]) and not len(image[Kind.LIMITS])
        read = LoadedImage(one_of.image)
        assert read.velocity == read.bounds == []


# --- what an image may say ------------------------------------------------------------------------------------------------

DATA = lower_programme(check.check_source((TOP + MANY).encode()))


def place_of(data: bytes, kind: Kind) -> int:
    return int(np.frombuffer(data, PLACE, int(kind), HEADER.itemsize)[kind - 1]["offset"])


def with_field(kind: Kind, row: int, field: str, value: int | bytes, data: bytes = DATA) -> bytes:
    """The image with one field of a record changed, and a hash that holds."""
    record = Image(data)[kind].dtype
    changed = bytearray(data)
    rows = np.frombuffer(changed, record, row + 1, place_of(data, kind)).copy()
    rows[row][field] = value
    at = place_of(data, kind) + row * record.itemsize
    changed[at:at + record.itemsize] = rows[row].tobytes()
    return fuzz_images.sealed(bytes(changed))


def taken(data: bytes) -> bool:
    try:
        LoadedImage(data)
    except ValueError:
        return False
    return True


V, L, C = Kind.VELOCITY, Kind.LIMITS, Kind.STORE_CLASSES
DAMAGED = [
    (V, 0, "of", 0), (V, 0, "of", 128), (V, 0, "of", 1), (V, 0, "keys", 0), (V, 0, "keys", 1024), (V, 0, "keys", 1), (V, 0, "window_s", 0),
    (V, 0, "window_s", 48), (V, 0, "window_s", 7201), (V, 0, "window_s", 86_412), (V, 1, "window_s", 60), (V, 0, "window", 1),
    (V, 0, "window", 0), (V, 0, "window", 6), (V, 0, "id", 5 | 3), (V, 0, "measure", 0), (V, 0, "measure", 7), (V, 0, "measure", 8),
    (V, 7, "measure", 5), (V, 7, "keys", 64), (V, 7, "flags", 2), (L, 9, "measure", 5), (L, 9, "at_most", 13), (C, 0, "region", 1),
    (C, 1, "reserved", (1, 0)), (V, 0, "flags", 1),
    (V, 3, "flags", 0), (V, 3, "flags", 2), (V, 0, "segments", (4, 0)), (V, 0, "segments", (0, 1)), (V, 0, "segments", (0, 0)),
    (V, 3, "segments", (1, 0)), (V, 2, "id", None), (V, 0, "reserved", (0,) * 16 + (1,)),
    (L, 0, "name", b""), (L, 0, "name", b"Jump"), (L, 0, "name", b"a\0b"), (L, 0, "at_most", -1), (L, 0, "at_most", 2**32),
    (L, 1, "at_most", 0), (L, 1, "at_most", 1_000_001), (L, 2, "at_most", 10**15 + 1), (L, 3, "at_most", 10**9 + 1), (L, 8, "at_most",
                                                                                                                      100_001),
    (L, 0, "counter", 0), (L, 0, "counter", 2), (L, 0, "counter", 8), (L, 0, "counter", 2**32 - 1), (L, 3, "counter", 1),
    (L, 1, "mean_sum", 0), (L, 1, "mean_sum", 3), (L, 1, "mean_sum", 8), (L, 1, "mean_count", 0), (L, 1, "mean_count", 2),
    (L, 1, "mean_after", 1), (L, 1, "mean_after", 1_000_001), (L, 0, "mean_after", 2), (L, 0, "mean_sum", 2), (L, 0, "mean_count", 3),
    (L, 3, "rung", 5), (L, 1, "rung_s", 60), (L, 0, "rung_s", 316_224_001),
    (L, 2, "rung", 1), (L, 4, "rung", 1), (L, 0, "keys", 1), (L, 3, "keys", 15),
    (L, 3, "keys", 256), (L, 0, "of", 1), (L, 3, "of", 2), (L, 0, "measure", 2), (L, 3, "measure", 2**8 - 1), (L, 0, "action", 0),
    (L, 0, "action", 7), (L, 0, "action", 4), (L, 0, "action", 5), (L, 0, "action", 6), (L, 2, "action", 5), (L, 4, "action", 5),
    (L, 0, "window", 1), (L, 3, "window", 1), (L, 3, "window", 6), (L, 0, "segments", (1, 0)), (L, 3, "segments", (8, 0)),
    (L, 0, "reserved", (1,) + (0,) * 27),
]


@pytest.mark.parametrize(("kind", "row", "field", "value"), DAMAGED, ids=[f"{k.name} {r} {f} {v}" for k, r, f, v in DAMAGED])
def test_a_record_that_no_limit_makes_is_refused(kind, row, field, value):
    if value is None:  # as another one
        value = Image(DATA)[kind][1][field]
    damaged = with_field(kind, row, field, value)
    assert damaged != DATA and taken(DATA) and not taken(damaged)


def test_a_record_that_another_limit_makes_is_taken():
    others = [(0, "at_most", 2**32 - 1), (0, "name", b"Other"), (1, "mean_after", 2), (3, "segments", (3, 0)), (0, "rung", 0)]
    for row, field, value in others:
        data = with_field(L, row, field, value)
        assert taken(data if field != "rung" else with_field(L, row, "rung_s", 0, data))


def test_43_sections_or_45_are_refused():
    for count in (0, 41, 42, 43, 45, 2**32 - 1):
        data = bytearray(DATA)
        at = HEADER.fields["section_count"][1]
        data[at:at + 4] = count.to_bytes(4, "little")
        assert not taken(fuzz_images.sealed(bytes(data))), count
        with pytest.raises(ImageDamaged, match="is not where" if count == 42 else "must have 42 or 44 sections"):
            Image(fuzz_images.sealed(bytes(data)))


def sayable(data: bytes, segments: tuple[str, ...] = ("students", "staff")) -> dict | None:
    """The programme of an image's limits, as data. None: a window that is no whole minute."""
    image = Image(data)
    rows = []
    for row in image[L]:
        of, per = ([word for i, word in enumerate(known) if int(row[field]) >> i & 1]
                   for known, field in ((tree.OF, "of"), (tree.KEYS, "keys")))
        measure, window = tree.MEASURES[row["measure"] - 1], tree.LIMIT_WINDOWS[row["window"]]
        bits = int(row["segments"][0]) | int(row["segments"][1]) << 64
        made = {"name": f"L{len(rows)}", "of": of, "per": per, "measure": measure, "then": tree.ACTIONS[row["action"] - 1]}
        if window == "sliding":
            window_s = int(image[V][row["counter"] - 1]["window_s"]) if row["counter"] else 60
            if window_s % 60:
                return None
            window = f"{window_s // 60} minutes"
        made["window"] = window
        if row["counter"] and image[V][row["counter"] - 1]["flags"] & 2:
            made["gives_back"] = True
        if bits:
            made["segments"] = [name for i, name in enumerate(segments) if bits >> i & 1]
        digits = {"money": 2, "points": 1, "quantity": 3}.get(measure, 0)
        if row["mean_sum"]:
            made |= {"at_most_means": tree.decimal(int(row["at_most"]), 3), "after": int(row["mean_after"])}
        else:
            made["at_most"] = tree.decimal(int(row["at_most"]), digits)
        if row["rung"]:
            made["rung"] = tree.RUNGS[row["rung"] - 1]
            if row["rung_s"] and row["rung_s"] % 60 == 0 and row["rung_s"] <= 86_400:
                made["lasts"] = f"{row['rung_s'] // 60} minutes"
            elif row["rung_s"] and row["rung_s"] % 3600 == 0 and row["rung_s"] <= 3600 * 8760:
                made["lasts"] = f"{row['rung_s'] // 3600} hours"
            elif row["rung_s"]:
                made["lasts"] = f"{row['rung_s'] // 86_400 or 1} days"
        rows.append(made)
    return {**plain(syntax.parse(TOP.replace("limits:\n", "").encode(), "top")), "segments": list(segments), "limits": rows}


# What the language does not say because it would have no meaning, and the core can count all the same.
HARMLESS = ("refused already", "says the same", "nothing is added up", "one command counts 1", "each opens another",
            "an enrolment that is refused")


def test_what_is_taken_of_a_damaged_image_is_what_a_limit_could_say():
    """Every bit of both sections: image_load takes no record of a kind that the checker would not let through."""
    begin, end = place_of(DATA, V), place_of(DATA, L) + len(Image(DATA)[L]) * 144
    found = {"refused": 0, "said": 0, "harmless": 0}
    for at in range(begin, end):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[at] ^= 1 << bit
            data = fuzz_images.sealed(bytes(damaged))
            if not taken(data):
                found["refused"] += 1
                continue
            if (said := sayable(data)) is None:
                found["harmless"] += 1
                continue
            try:
                check.check_node(generate.node_of(said), "said")
                found["said"] += 1
            except ProgramError as error:
                assert all(any(word in line for word in HARMLESS) for line in str(error).splitlines()), f"byte {at} bit {bit}: {error}"
                found["harmless"] += 1
    assert found["refused"] > found["said"] > 1000 and found["harmless"] > 0, found


def test_image_load_takes_of_any_limit_what_the_checker_takes():
    """Limits that nobody checked, lowered all the same: both say no to the same ones."""
    dice, top, found = random.Random(5), check.check_source(TOP.replace("limits:\n", "").encode()), {"both": 0, "neither": 0, "harmless": 0}

    def some(words: tuple[str, ...], most: int) -> tuple[str, ...]:
        chosen = set(dice.sample(words, dice.randint(1, most)))
        return tuple(word for word in words if word in chosen)

    for _ in range(4000):
        window, means, then = dice.choice(tree.LIMIT_WINDOWS), dice.random() < 0.2, dice.choice(tree.ACTIONS)
        of = some(tree.OF, dice.choice((1, 1, 2, 3)))
        counts = tree.Counter(of, dice.choice(tree.MEASURES), some(tree.KEYS, dice.choice((1, 1, 2, 3, 4))), window,
                              dice.choice((60, 7200, 86_400)) if window == "sliding" else 0, frozenset(dice.choice(((), (), ("staff",)))),
                              window != "receipt" and dice.random() < 0.2)
        at_most = 0 if counts.measure == "count" and window == "receipt" and not means else dice.choice((1, 100_000, 100_001, 2**32))
        limit = tree.Limit("L0", counts, at_most, 5 * means, then, dice.choice((None, None, "warned")), 0)
        data = lower_programme(replace(top, limits=(limit,)))
        text = ""
        try:
            check.check_node(generate.node_of(sayable(data)), "said")
        except ProgramError as error:
            text = str(error)
        if taken(data) != (not text):
            assert text and all(any(word in line for word in HARMLESS) for line in text.splitlines()), f"{limit}: {text or 'not loaded'}"
            found["harmless"] += 1
        else:
            found["neither" if text else "both"] += 1
    assert min(found.values()) > 10 and found["both"] > 200, found


# --- words, differences, the file of programs/ ----------------------------------------------------------------------------

def test_versions_are_compared_limit_by_limit():
    before, after = ((TOP + rows + "\n").encode() for rows in (
        one() + "\n" + one(name="Gone", window="week") + "\n" + one(name="Written out", of="burns"),
        one(at_most="5", then="refuse") + "\n" + one(name="Written out", of="[burns]", measure="count") + "\n" + one(name="New",
                                                                                                                     per="[till]")))
    assert [tuple(row) for row in difference.differences(before, after)] == [
        ("limits[A].at_most", "3", "5"), ("limits[A].then", "mark", "refuse"),
        ("limits[New]", "", "{of: earns, per: [till], window: day, at_most: 3, then: mark}"),
        ("limits[Gone]", "{of: earns, per: member, window: week, at_most: 3, then: mark}", "")]
    assert [row.path for row in difference.differences(before, before.split(b"limits:")[0])] == ["limits"]


def grocery(tmp_path: Path) -> Path:
    """The chain's programme with the file of limits, in a folder of its own."""
    (tmp_path / "fraud.yaml").write_bytes(FRAUD.read_bytes())
    path = tmp_path / "grocery.yaml"
    path.write_text((ROOT / "programs" / "grocery.yaml").read_text() + "\nsegments: [staff]\nlimits: fraud.yaml\n")
    return path


def test_the_limits_to_begin_with_fit_a_grocery_chain(tmp_path):
    compiled = compile_file(grocery(tmp_path))
    limits = compiled.program.limits
    read = LoadedImage(compiled.image)
    assert len(limits) == len(read.bounds) >= 20 and len(read.velocity) == len(compiled.program.counters) <= 64
    told = [text for row, text in words.describe(compiled.program) if row.startswith("limit ")]
    assert [text.split(": ")[0] for text in told] == [limit.name for limit in limits]
    assert {of for limit in limits for of in limit.counts.of} == set(tree.OF) and {limit.then for limit in limits} == set(tree.ACTIONS)
    for limit in limits:  # a household makes up to three receipts a day, in up to three shops
        if "member" in limit.counts.per and limit.counts.window == "day" and limit.counts.of == ("earns",) and limit.then == "refuse":
            assert limit.at_most >= 5, limit.name
    rest = (ROOT / "programs" / "grocery.yaml").read_text() + "\nsegments: [staff]\n"
    without = compile_source(rest.encode())
    assert replace(compiled.program, limits=()) == without.program and without.hash != compiled.hash


def test_the_limits_that_the_page_shows_are_right(tmp_path):
    """docs/fraud.md, on shops far apart: with a table of stores beside it."""
    shown = re.findall(r"^```yaml\n((?:.*\n)*?)^```$", (ROOT / "docs" / "fraud.md").read_text(), re.MULTILINE)
    assert len(shown) == 1
    (tmp_path / "stores.csv").write_text("store,region\n1,Krakow\n2,Gdansk\n")
    programme = check.check_source((TOP[:TOP.index("segments")] + "rules: []\n" + shown[0]).encode(), "p.yaml", tmp_path)
    assert {limit.counts.measure for limit in programme.limits} == {"regions"} and len(LoadedImage(lower_programme(programme)).bounds) == 2


def test_a_file_that_asks_for_a_segment_needs_it(tmp_path):
    path = grocery(tmp_path)
    path.write_text(path.read_text().replace("segments: [staff]", "segments: [students]"))
    with pytest.raises(ProgramError,
                       match=r"limits: fraud.yaml:[0-9]+:[0-9]+: limits\[0\].segments: 'staff' is no segment of this programme"):
        check.check_file(path)


# --- any limits -----------------------------------------------------------------------------------------------------------

@often
@given(generate.limit_lists())
def test_generated_limits_compile_load_and_are_told(rows):
    top = {**loaded(TOP.replace("limits:\n", "")), "segments": generate.SEGMENTS, "limits": rows}
    programme = check.check_node(generate.node_of(top), "generated")
    data = lower_programme(programme)
    read, image = LoadedImage(data), Image(data)
    assert [name.decode() for name, *_ in read.bounds] == [limit.name for limit in programme.limits] == [row["name"] for row in rows]
    assert [number for number, *_ in read.velocity] == [lower_velocity.counter_id(counter) for counter in programme.counters]
    assert len(image[L]) == len(rows) and lower_programme(programme) == data
    told = [text for row, text in words.describe(programme) if row.startswith("limit ")]
    assert [text.split(": ")[0] for text in told] == [row["name"] for row in rows]
    VALIDATOR.validate(top)
    again = Image(lower_programme(check.check_node(generate.node_of(sayable(data, tuple(generate.SEGMENTS))), "again")))
    assert again[V].tobytes() == image[V].tobytes(), "what the records say, said once more"
    for field in (name for name in image[L].dtype.names if name != "name"):
        assert np.array_equal(again[L][field], image[L][field]), field
