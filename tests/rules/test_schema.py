"""The schema for editors is current, takes every programme of ours and finds what a schema can find."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from ledger.rules import schema
from tests.rules.ours import FRAUD, PROGRAMMES
from tests.rules.test_examples import EXAMPLES, FRAME, LIMITS

ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft202012Validator(schema.schema())


def loaded(text: str):
    """YAML as editors see it: dates are texts."""

    def with_texts(value):
        if isinstance(value, dict):
            return {str(key): with_texts(part) for key, part in value.items()}
        if isinstance(value, list):
            return [with_texts(part) for part in value]
        return str(value) if isinstance(value, datetime.date) else value

    return with_texts(YAML(typ="safe", pure=True).load(text))


def test_the_file_is_what_the_description_says():
    assert (ROOT / "programs" / "schema.json").read_text() == schema.text(), "run: python -m ledger.rules.schema > programs/schema.json"


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.text()))


@pytest.mark.parametrize("path", PROGRAMMES, ids=lambda path: path.stem)
def test_every_programme_of_ours_meets_it(path):
    VALIDATOR.validate(loaded(path.read_text()))


def test_a_list_of_limits_meets_it():
    VALIDATOR.validate({**loaded(FRAME), **loaded(FRAUD.read_text())})
    for title, text in LIMITS.items():
        VALIDATOR.validate({**loaded(FRAME), **loaded(text.split("---\n")[0])}), title


def test_every_example_meets_it():
    for title, text in EXAMPLES.items():
        errors = [error.message for error in VALIDATOR.iter_errors({**loaded(FRAME), **(loaded(text).get("programme") or {})})]
        assert errors == [], title


@pytest.mark.parametrize(
    "wrong",
    [
        {"rules": [{"name": "Base", "percnt": 5}]},
        {"rules": {}},
        {"currency": "EUO"},
        {"wallets": []},
        {"anonymous_accounts": "yes"},
        {"rules": [{"name": "Base", "percent": 5, "when": {"weekday": "monday"}}]},
        {"rules": [{"percent": 5}]},
        {"rules": [{"name": "Base", "percent": 5, "when": {"any": [{"not": {"colour": "red"}}]}}]},
        {"max_age": "30 weeks"},
        {"limits": [{"name": "A", "of": "earns", "per": "member", "window": "day", "at_most": 1}]},
        {"limits": [{"name": "A", "of": "earn", "per": "member", "window": "day", "at_most": 1, "then": "mark"}]},
        {"limits": [{"name": "A", "of": "earns", "per": "member", "window": "2 days", "at_most": 1, "then": "mark"}]},
        {"limits": [{"name": "A", "of": "earns", "per": "member", "window": "day", "most": 1, "then": "mark"}]},
        {"limits": {"file": "fraud.yaml"}},
    ],
)
def test_what_a_schema_can_find_is_found(wrong):
    assert not VALIDATOR.is_valid({**loaded(FRAME), **wrong})
