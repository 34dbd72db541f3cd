# SPDX-License-Identifier: MIT
"""The scenarios on the other reading of each switch: those that notice, and all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emulator.cli import app
from emulator.conformance import suite
from emulator.conformance.suite import Result, Verdict
from emulator.conformance.switches import NOTICED, run_with
from emulator.kmcl.inferred import DEFAULTS, SWITCHES, Inferred, Switch, parse_inferred


@pytest.fixture(scope="module")
def by_default() -> dict[int, Result]:
    return {result.scenario.number: result for result in suite.run()}


def the_other(switch: Switch) -> Inferred:
    return parse_inferred([f"{switch.name}={list(switch.kind)[1].value}"])


def test_each_switch_is_in_the_table() -> None:
    assert list(NOTICED) == [switch.name for switch in SWITCHES]


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_the_scenarios_that_notice_record_it_and_all_others_hold(
    switch: Switch, by_default: dict[int, Result]
) -> None:
    other = the_other(switch)
    for result in run_with(other):
        number = result.scenario.number
        before = by_default[number]
        if number in NOTICED[switch.name]:
            assert result.verdict is Verdict.RECORDED
            assert result.observed.startswith(f"with {other}: ")
            assert result.observed.removeprefix(f"with {other}: ") != before.observed, number
        else:
            assert (result.verdict, result.observed) == (before.verdict, before.observed), number


def test_with_the_defaults_nothing_is_recorded_that_is_not_otherwise(
    by_default: dict[int, Result],
) -> None:
    for result in run_with(DEFAULTS, range(1, 30)):
        assert result.verdict is by_default[result.scenario.number].verdict


def test_a_scenario_that_notices_and_breaks_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("emulator.conformance.scenarios.save_packet.busy", lambda: 1 // 0)
    (result,) = run_with(the_other(SWITCHES[0]), [19])
    assert result.verdict is Verdict.BROKEN


def test_the_command_runs_with_a_setting(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["--with", "opened=called", "--with", "retired=cancelled"]
    done = CliRunner().invoke(
        app, ["conformance", "run", "5", "40", "63", *words, "--json", str(report)]
    )
    assert done.exit_code == 0, done.output
    rows = {row["number"]: row for row in json.loads(report.read_text())}
    assert [rows[number]["verdict"] for number in ("5", "40", "63")] == [
        "passed",
        "recorded",
        "recorded",
    ]
    assert rows["40"]["observed"].startswith("with opened=called retired=cancelled: it runs on")


def test_a_wrong_setting_is_one_line() -> None:
    done = CliRunner().invoke(app, ["conformance", "run", "5", "--with", "pause=never"])
    assert done.exit_code == 1
    assert done.stderr == "error: 'pause=never': pause is incoming or outgoing-too\n"
