"""The JSON Schema of programmes, for editors: made from the same description that the checker reads by.

Not for checking (a schema cannot say most of what `check.py` does). `python -m ledger.rules.schema` prints it; programs/schema.json
is its output, and a test compares the two.
"""

from __future__ import annotations

import json

from ledger.rules.check import PROGRAMME
from ledger.rules.conditions import ConditionKind, ReachKind

PLACES = ("when", "lines", "burn", "goods")


def schema() -> dict:
    """The schema as data."""
    definitions = {place: ConditionKind(place).definition() for place in PLACES}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A loyalty programme (docs/rules.md)",
        **PROGRAMME.schema(),
        "$defs": {**definitions, "reach": ReachKind().definition()},
    }


def text() -> str:
    """The schema as text, the same for the same description."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
