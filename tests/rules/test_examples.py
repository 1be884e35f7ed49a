"""The examples of docs/rules.md are run, each one; what the page says is what the interpreter does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ledger._probe import LoadedImage
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from ledger.rules import check, lower2, syntax, words
from ledger.rules.syntax import ProgramError
from tests.rules.till import Till

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rules.md"
BLOCKS = re.findall(r"^```yaml (frame|example|mistake|limits) ?(.*)\n((?:.*\n)*?)^```$", PAGE.read_text(), re.MULTILINE)
FRAME = next(body for kind, _, body in BLOCKS if kind == "frame")
EXAMPLES = {title: body for kind, title, body in BLOCKS if kind == "example"}
MISTAKES = {title: body for kind, title, body in BLOCKS if kind == "mistake"}
LIMITS = {title: body for kind, title, body in BLOCKS if kind == "limits"}


def plain(node) -> object:
    """A YAML node as texts: nothing becomes a number, a date or a boolean on the way."""
    if isinstance(node, MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [plain(part) for part in node.value]
    assert isinstance(node, ScalarNode)
    return node.value


def over_frame(keys: MappingNode | None):
    """The programme of the frame with some keys laid over it."""
    frame = syntax.parse_strict(FRAME.encode(), "frame")
    own = {key.value for key, _ in keys.value} if keys else set()
    frame.value = [pair for pair in frame.value if pair[0].value not in own] + (keys.value if keys else [])
    return check.check_node(frame, "example")


def test_the_page_has_its_examples():
    assert len(EXAMPLES) >= 35 and len(MISTAKES) >= 5 and len(LIMITS) >= 7
    assert len(EXAMPLES) + len(MISTAKES) + len(LIMITS) == sum(kind != "frame" for kind, _, _ in BLOCKS), "two examples have the same title"


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_does_what_the_page_says(title):
    node = YAML(typ="safe", pure=True).compose(EXAMPLES[title])
    programme = over_frame(next((value for key, value in node.value if key.value == "programme"), None))
    Till(programme).tell(plain(node), title)


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_is_reported_as_the_page_says(title):
    text, expected = MISTAKES[title].split("---\n")
    with pytest.raises(ProgramError) as raised:
        over_frame(syntax.parse_strict(text.encode(), "example"))
    lines = str(raised.value).splitlines()
    assert [line.removeprefix("example:") for line in lines] == [line for line in expected.splitlines() if line]


@pytest.mark.parametrize("title", LIMITS)
def test_limits_are_what_the_page_says_in_words(title):
    text, expected = LIMITS[title].split("---\n")
    programme = over_frame(syntax.parse_strict(text.encode(), "example"))
    assert [said for row, said in words.describe(programme) if row.startswith("limit ")] == expected.splitlines()
    read = LoadedImage(lower2.lower_programme(programme))
    assert [name.decode() for name, *_ in read.bounds] == [limit.name for limit in programme.limits]
