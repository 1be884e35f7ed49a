"""The compiled evaluator equals the reference interpreter: every field of the result, for whatever the language allows."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ledger.rules import reference
from ledger.rules.reference import Shared
from tests.rules import generate, till
from tests.rules.compiled import Compiled, both
from tests.rules.test_examples import EXAMPLES, over_frame, plain

often = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw):
    """A programme, a member, and receipts in any order of time."""
    return (draw(generate.programmes()), draw(generate.members()),
            draw(st.lists(st.tuples(generate.receipts(), generate.times_us()), min_size=1, max_size=8)))


@often
@given(cases())
def test_generated_receipts_come_to_the_same(case):
    programme, member, receipts = case
    compiled, shared = Compiled(programme), Shared()
    for receipt, time_us in receipts:
        result = both(compiled, member, receipt, time_us, shared)
        member, shared = reference.apply(programme, member, shared, result)


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_examples_of_the_page_come_to_the_same(title, monkeypatch):
    node = YAML(typ="safe", pure=True).compose(EXAMPLES[title])
    programme = over_frame(next((value for key, value in node.value if key.value == "programme"), None))
    compiled = Compiled(programme)
    monkeypatch.setattr(reference, "evaluate", lambda _, *case: both(compiled, *case))
    till.Till(programme).tell(plain(node), title)
