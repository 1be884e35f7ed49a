"""The programmes of programs/: each is right, and does what its stories tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ledger.rules import check
from tests.rules.ours import PROGRAMMES
from tests.rules.test_examples import plain
from tests.rules.till import Till

ROOT = Path(__file__).resolve().parents[2]


def stories():
    for path in sorted((ROOT / "tests" / "rules" / "stories").glob("*.yaml")):
        for story in plain(YAML(typ="safe", pure=True).compose(path.read_text())):
            yield pytest.param(path.name, story, id=f"{path.stem}: {story['story']}")


@pytest.mark.parametrize("path", PROGRAMMES, ids=lambda path: path.stem)
def test_a_programme_is_right(path):
    assert check.check_file(path).rules


def test_every_programme_but_the_base_one_has_stories():
    assert {path.name for path in PROGRAMMES} - {"base.yaml"} == {path.name for path in (ROOT / "tests" / "rules" / "stories").iterdir()}


@pytest.mark.parametrize(("name", "story"), stories())
def test_a_story_comes_true(name, story):
    Till(check.check_file(ROOT / "programs" / name)).tell(story, story["story"])
