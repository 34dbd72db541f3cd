# SPDX-License-Identifier: MIT
"""docs/vmbus.md has every form of every message as the table has it, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from emulator.wire import messages as m

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "vmbus.md").read_text()


def _rows(heading: str) -> list[list[str]]:
    section = TEXT[TEXT.index(f"## {heading}") :].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_form_is_documented_as_it_is() -> None:
    said = [row[:6] for row in _rows("Messages")]
    assert said == [
        [
            str(form.TYPE.value),
            f"`{form.__name__}`",
            "guest" if form.FROM_GUEST else "host",
            str(form.SINCE),
            " or ".join(f"`{feature.name}`" for feature in form.FEATURES) or "–",
            f"{form.LAYOUT.size}{' + ranges' if form in (m.GpadlHeader, m.GpadlBody) else ''}",
        ]
        for form in m.TABLE
    ]


def test_every_message_and_rule_names_tests_that_exist() -> None:
    rows = _rows("Messages") + _rows("Rules and races")
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^(?:async )?def (test_\w+)|^(Test\w+)", sources, re.MULTILINE))
    names = {name for pair in there for name in pair}
    for row in rows:
        said = re.findall(r"`(\w+)`", row[-1])
        assert said, row
        assert set(said) <= names, row
