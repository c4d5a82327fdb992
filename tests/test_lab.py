"""Every page of the lab has a question, a command, one narrow table and a decision, and the index lists it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "docs" / "lab"
PAGES = sorted(LAB.glob("2*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+", page.stem)
    for part in ("Question", "Command", "Decision"):
        assert text.count(f"**{part}.**") == 1, part
    heads = [line for line in text.splitlines() if re.fullmatch(r"\|(---\|)+", line)]
    assert [head.count("---") <= 5 for head in heads] == [True], "one table of at most five columns"
    decision = text.split("**Decision.**")[1].split("\n\n")[0]
    assert " ".join(decision.split()) in (LAB / "README.md").read_text(encoding="utf-8")
