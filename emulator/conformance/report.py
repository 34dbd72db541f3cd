# SPDX-License-Identifier: MIT
"""Results as JSON, JUnit XML and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

from emulator.conformance.suite import Result, Section, Verdict


def counts(results: Sequence[Result]) -> dict[Verdict, int]:
    """Count the verdicts, those that nobody has included."""
    return {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}


def summary(results: Sequence[Result]) -> str:
    """Return one line."""
    found = counts(results)
    parts = [
        f"{found[Verdict.PASSED]} pass",
        f"{found[Verdict.RECORDED]} not specified and recorded",
        f"{found[Verdict.FAILED]} fail",
    ]
    if found[Verdict.BROKEN]:
        parts.append(f"{found[Verdict.BROKEN]} could not be run")
    return f"{len(results)} scenarios: {', '.join(parts)}"


def basis(result: Result) -> str:
    """Return the letters of what the expectation rests on."""
    return "/".join(each.value for each in result.scenario.basis)


def as_json(results: Sequence[Result]) -> str:
    """Return a list of objects, one for each scenario."""
    rows = [
        {
            "number": result.scenario.number,
            "section": result.scenario.section.value,
            "title": result.scenario.title,
            "expected": result.scenario.expected,
            "basis": [each.name.lower() for each in result.scenario.basis],
            "source": result.scenario.source,
            "verdict": result.verdict.name.lower(),
            "observed": result.observed,
            "seconds": round(result.seconds, 6),
        }
        for result in results
    ]
    return json.dumps(rows, indent=2)


def as_junit(results: Sequence[Result]) -> str:
    """Return a test suite in JUnit's XML; what is recorded has passed, with an output."""
    found = counts(results)
    suite = ElementTree.Element(
        "testsuite",
        name="vmbus conformance",
        tests=str(len(results)),
        failures=str(found[Verdict.FAILED]),
        errors=str(found[Verdict.BROKEN]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"conformance.{result.scenario.section.name.lower()}",
            name=f"{result.scenario.number} {result.scenario.title}",
            time=f"{result.seconds:.3f}",
        )
        match result.verdict:
            case Verdict.FAILED:
                ElementTree.SubElement(case, "failure", message=result.observed)
            case Verdict.BROKEN:
                ElementTree.SubElement(case, "error", message=result.observed)
            case Verdict.PASSED | Verdict.RECORDED:
                ElementTree.SubElement(case, "system-out").text = result.observed
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


_HEAD = (
    "<!-- SPDX-License-Identifier: MIT -->\n"
    "# Conformance of the KMCL endpoint\n\n"
    "Made by `vmbus conformance --markdown docs/conformance.md`; a test holds it against the\n"
    "same scenarios. Basis: D documented (WDK header, Microsoft Learn), C corroborated by open\n"
    "source of Microsoft's or Linux, I inferred, to be measured on Windows before it is taken for\n"
    'truth. The verdict "n/s": nothing is specified; what our endpoint does is recorded, and\n'
    "nothing was harmed.\n"
)


def as_markdown(results: Sequence[Result]) -> str:
    """Return docs/conformance.md."""
    lines = [_HEAD, f"{summary(results)}.", ""]
    for section in Section:
        rows = [result for result in results if result.scenario.section is section]
        if not rows:
            continue
        lines += [f"## {section.value}", ""]
        lines += ["| # | scenario | expected | basis | source | verdict | observed |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for result in rows:
            scenario = result.scenario
            cells = (
                str(scenario.number),
                scenario.title,
                scenario.expected,
                basis(result),
                scenario.source,
                result.verdict.value,
                result.observed,
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
