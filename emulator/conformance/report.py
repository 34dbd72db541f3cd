# SPDX-License-Identifier: MIT
"""Results as JSON, JUnit XML and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

import msgspec

from emulator.conformance.suite import Result, Scenario, Section, Verdict


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
    if found[Verdict.INVISIBLE]:
        parts.append(f"{found[Verdict.INVISIBLE]} not visible to a guest")
    if found[Verdict.BROKEN]:
        parts.append(f"{found[Verdict.BROKEN]} could not be run")
    return f"{len(results)} scenarios: {', '.join(parts)}"


def basis(scenario: Scenario) -> str:
    """Return the letters of what the expectation rests on."""
    return "/".join(each.value for each in scenario.basis)


def as_json(results: Sequence[Result]) -> str:
    """Return a list of objects, one for each scenario."""
    rows = [
        {
            "number": result.scenario.key,
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
        skipped=str(found[Verdict.INVISIBLE]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"conformance.{result.scenario.section.name.lower()}",
            name=f"{result.scenario.key} {result.scenario.title}",
            time=f"{result.seconds:.3f}",
        )
        match result.verdict:
            case Verdict.FAILED:
                ElementTree.SubElement(case, "failure", message=result.observed)
            case Verdict.BROKEN:
                ElementTree.SubElement(case, "error", message=result.observed)
            case Verdict.INVISIBLE:
                ElementTree.SubElement(case, "skipped", message=result.observed)
            case Verdict.PASSED | Verdict.RECORDED:
                ElementTree.SubElement(case, "system-out").text = result.observed
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one scenario ended end to end."""

    verdict: str
    observed: str
    uses: str = ""
    """Control commands of docs/probe.md that the guest was given."""


class Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run end to end that is kept: what it was run with, and each scenario by its key."""

    qemu: str
    guest: str
    accelerator: str
    scenarios: dict[str, Seen]


def decode_recorded(data: bytes) -> Recorded:
    """Decode what :func:`as_recorded` gave; raises ValueError if it is not that."""
    return msgspec.json.decode(data, type=Recorded)


def as_recorded(recorded: Recorded) -> str:
    """Return a run as the text of a file."""
    return msgspec.json.format(msgspec.json.encode(recorded)).decode() + "\n"


_HEAD = (
    "<!-- SPDX-License-Identifier: MIT -->\n"
    "# Conformance of the KMCL endpoint\n\n"
    "Basis: D documented (WDK header, Microsoft Learn), C corroborated by open\n"
    "source of Microsoft's or Linux, I inferred, to be measured on Windows before it is taken for\n"
    'truth. The verdict "n/s": nothing is specified; what our endpoint does is recorded, and\n'
    "nothing was harmed.\n\n"
    "*In one process*: our endpoint with the model guest. *End to end*: a stock kernel with the\n"
    "probe driver (docs/probe.md), across a snapshot that is restored in new QEMU and backend\n"
    "processes. No run was made with Windows. This page is made by\n\n"
    "    vmbus conformance run --end-to-end --record docs/conformance.json\n"
    "    vmbus conformance --markdown docs/conformance.md --recorded docs/conformance.json\n\n"
    "of which the second boots nothing, and a test holds the page against it. `vmbus conformance\n"
    "run --end-to-end 12 40 R3` runs some; `--quick` the reduced set that every test run has.\n"
)


def as_markdown(
    results: Sequence[Result],
    recorded: Recorded | None = None,
    machine: Sequence[Scenario] = (),
) -> str:
    """Return docs/conformance.md: these results beside a run end to end.

    ``machine`` are the scenarios that are run end to end only.
    """
    lines = [_HEAD, f"In one process: {summary(results)}."]
    if recorded is not None:
        lines.append(_summary_of(recorded))
    lines.append("")
    rows = [(each.scenario, each.verdict.value, each.observed) for each in results]
    rows += [(each, "–", "needs a machine") for each in machine]
    for section in Section:
        mine = [row for row in rows if row[0].section is section]
        if not mine:
            continue
        lines += [f"## {section.value}", ""]
        lines += ["| # | scenario | expected | basis | source | in one process | end to end |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for scenario, verdict, observed in mine:
            seen = None if recorded is None else recorded.scenarios.get(scenario.key)
            cells = (
                scenario.key,
                scenario.title,
                scenario.expected,
                basis(scenario),
                scenario.source,
                f"**{verdict}** {observed}",
                "–" if seen is None else f"**{seen.verdict}** {seen.observed}",
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _summary_of(recorded: Recorded) -> str:
    verdicts = [seen.verdict for seen in recorded.scenarios.values()]
    told = {
        Verdict.PASSED: "pass",
        Verdict.RECORDED: "not specified and recorded",
        Verdict.FAILED: "fail",
        Verdict.BROKEN: "could not be run",
        Verdict.INVISIBLE: "not visible to a guest",
    }
    parts = [
        f"{verdicts.count(verdict.value)} {words}"
        for verdict, words in told.items()
        if verdict.value in verdicts or verdict is Verdict.FAILED
    ]
    return (
        f"End to end: {len(verdicts)} scenarios: {', '.join(parts)}; with {recorded.qemu} "
        f"({recorded.accelerator}) and {recorded.guest}."
    )


def uses_markdown(recorded: Recorded) -> str:
    """Return the table of docs/probe.md: which scenario gives the guest which commands."""
    by_uses: dict[str, list[str]] = {}
    for key, seen in recorded.scenarios.items():
        if seen.uses:
            by_uses.setdefault(seen.uses, []).append(key)
    lines = ["| scenarios | commands |", "|---|---|"]
    lines += [
        f"| {', '.join(keys)} | {', '.join(f'`{name}`' for name in uses.split())} |"
        for uses, keys in by_uses.items()
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
