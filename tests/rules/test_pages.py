"""docs/programmes: a page for each programme. Its receipts come to what the page says, and its tables are what the rules gave."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ledger.rules import check
from tests.rules.ours import PROGRAMMES
from tests.rules.test_examples import plain
from tests.rules.till import Till

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "programmes").glob("*.md"))
BLOCK, TABLE = r"^```yaml receipt\n((?:.*\n)*?)^```\n", r"\n\| rule \| (points|off) \| because \|\n\|---\|---\|---\|\n((?:\|.*\n)+)"
RECEIPT = re.compile(BLOCK + TABLE, re.MULTILINE)
RECEIPTS = [pytest.param(page, *found.groups(), id=f"{page.stem} {i}")
            for page in PAGES for i, found in enumerate(RECEIPT.finditer(page.read_text()), start=1)]


def test_every_programme_has_a_page_and_every_page_is_linked():
    assert [page.stem for page in PAGES] == [path.stem for path in PROGRAMMES]
    for page in PAGES:
        assert f"docs/programmes/{page.name}" in (ROOT / "README.md").read_text()
        assert f"(programmes/{page.name})" in (ROOT / "docs" / "rules.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_is_a_receipt_with_its_table(page):
    assert 1 <= page.read_text().count("```yaml") == len(RECEIPT.findall(page.read_text()))


@pytest.mark.parametrize(("page", "text", "what", "table"), RECEIPTS)
def test_a_receipt_of_a_page_comes_to_what_it_says(page, text, what, table):
    story = plain(YAML(typ="safe", pure=True).compose(text))
    till = Till(check.check_file(ROOT / "programs" / f"{page.stem}.yaml"))
    result = till.tell(story, page.stem)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert {rule: number for rule, number, _ in rows} == till.told(result, "rules" if what == "points" else "amounts")
