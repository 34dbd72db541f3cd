# SPDX-License-Identifier: MIT
"""The explorer: it finds nothing in the endpoint, and every bug that is planted there."""

from __future__ import annotations

import random
import re
import shlex

import pytest
from typer.testing import CliRunner

from emulator.cli import app
from emulator.conformance.drawing import draw_cut, draw_run
from emulator.conformance.explorer import (
    EVERYWHERE,
    arenas,
    explore,
    play,
    points_of,
    shrink,
    with_cut,
)
from emulator.conformance.ledger import Symptom, Violation
from emulator.conformance.steps import (
    ARGUMENTS,
    BadRun,
    Cut,
    Mode,
    Op,
    Signals,
    Step,
    With,
    format_run,
    parse_run,
    steps_of,
)
from emulator.kmcl.inferred import SWITCHES
from tests.unit.conformance.area_mutations import AREA_MUTATIONS
from tests.unit.conformance.mutations import MUTATIONS

ISSUE = {
    "lost queued packet": "lost_queued_packet",
    "reused transaction id": "reused_transaction_id",
    "order swap": "order_swap",
    "double completion": "double_completion",
    "lost wake-up": "lost_wake_up_of_the_guest",
    "skipped callback": "skipped_completion_routine",
    "stale GPADL": "stale_gpadl_of_the_rings",
    "wrong status": "wrong_status_of_a_part",
    "partial restore kept": "partial_restore_kept",
    "leaked packet": "leaked_packet",
}
"""The kinds of bug that must be found whatever else is; each has one here."""


@pytest.mark.slow
def test_five_thousand_restore_points() -> None:
    exploration = explore(0, 5000)
    assert exploration.failure is None, exploration.failure.command
    assert exploration.points == 5000


def test_each_kind_of_bug_is_planted() -> None:
    assert set(ISSUE.values()) <= set(MUTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_planted_bug_is_found_and_its_run_made_short(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[name](monkeypatch)
    failure = explore(0, 5000).failure
    assert failure is not None, MUTATIONS[name].__doc__
    short = shrink(failure)
    assert len(short.run) <= 8, format_run(short.run)
    with pytest.raises(Violation, match=re.escape(str(short.violation))):
        play(parse_run(format_run(short.run)))
    monkeypatch.undo()
    play(short.run)
    play(failure.run)


def test_a_bug_is_planted_in_the_other_reading_of_each_switch() -> None:
    words = {word for words, _, _ in AREA_MUTATIONS.values() for word in words}
    assert {f"{switch.name}={list(switch.kind)[1].value}" for switch in SWITCHES} <= words
    assert {"pipe", "force-new"} <= words


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(AREA_MUTATIONS))
def test_a_bug_planted_in_an_area_is_found_and_its_run_made_short(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, seed, plant = AREA_MUTATIONS[name]
    plant(monkeypatch)
    failure = explore(seed, 5000, given=tuple(map(With, words))).failure
    assert failure is not None, plant.__doc__
    short = shrink(failure)
    assert len(short.run) <= 9, format_run(short.run)
    with pytest.raises(Violation, match=re.escape(str(short.violation))):
        play(parse_run(format_run(short.run)))
    monkeypatch.undo()
    play(short.run)
    play(failure.run)


def test_a_failing_run_becomes_as_short_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS["lost_queued_packet"](monkeypatch)
    failure = explore(0, 1000).failure
    assert failure is not None
    short = shrink(failure)
    # Sent before there is a guest, it is queued; nothing can be left out.
    assert [str(item) for item in short.run] == ["send 1 0 0", "cut 0 restore lost 0"]
    assert short.run == shrink(failure).run
    for index in range(len(short.run)):
        play([*short.run[:index], *short.run[index + 1 :]])


def test_a_failure_is_reproduced_by_the_commands_that_were_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = CliRunner()
    MUTATIONS["lost_wake_up_of_the_host"](monkeypatch)
    found = runner.invoke(app, ["conformance", "explore", "--points", "2000"])
    assert found.exit_code == 1
    error = found.stderr.splitlines()[0]
    assert error.startswith("error: stuck: ")
    commands = re.findall(r"(?:reproduce|shortest): +vmbus (.*)", found.stderr)
    assert len(commands) == 2
    again = runner.invoke(app, shlex.split(commands[0]))
    assert (again.exit_code, again.stderr.splitlines()[0]) == (1, error)
    short = runner.invoke(app, shlex.split(commands[1]))
    assert short.exit_code == 1
    assert short.stderr.splitlines()[0].removeprefix("error: ") in found.stderr.splitlines()[-1]
    monkeypatch.undo()
    for command in commands:
        assert runner.invoke(app, shlex.split(command)).exit_code == 0


def test_the_summary_has_points_runs_seconds_and_rate() -> None:
    result = CliRunner().invoke(app, ["conformance", "explore", "--points", "20", "--seed", "5"])
    assert result.exit_code == 0
    assert re.match(r"20 restore points in 1 runs, [\d.]+ s: \d+ points a minute\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--at", "99"], "the run has steps 0 to 23"),
        (["--at", "x.1"], "give STEP or STEP.AFTER"),
        (["--steps", "ask 1 2"], "ask has 3 arguments, here are 2"),
        (["--steps", "jump"], "there is no step 'jump'; the steps are: with, cut, open, close"),
        (["--steps", "ask 0 0 0"], "0 is not between 1 and 80"),
        (["--steps", "ask one 0 0"], "'one' is not a number"),
        (["--steps", "cut 0 restore"], "a cut has four arguments"),
        (["--steps", "cut 0 never lost 0"], "modes: restore, double"),
        (["--steps", "cut 0 restore lost 0; close", "--at", "0"], "give --at or cuts, not both"),
        (["--steps", " ; "], "there is no step"),
        (["--steps", "with pipe"], "there is no step"),
        (["--steps", "with pipe too; close"], "give one word"),
        (["--steps", "with pause=never; close"], "pause is incoming or outgoing-too"),
        (["--with", "pipes"], "there is no switch 'pipes'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(app, ["conformance", "explore", *arguments])
    assert result.exit_code == 1
    assert re.fullmatch(r"error: .*\n", result.stderr)
    assert text in result.stderr


def test_all_runs_can_be_played_with_a_setting_and_say_so_when_they_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = CliRunner()
    words = ["--with", "opened=called", "--with", "pipe"]
    command = ["conformance", "explore", "--points", "300", *words]
    assert runner.invoke(app, command).exit_code == 0
    shown = runner.invoke(app, ["conformance", "explore", "--show", *words])
    assert shown.stdout.startswith("with opened=called; with pipe; open ")
    AREA_MUTATIONS["opened_not_called"][2](monkeypatch)
    found = runner.invoke(app, command)
    assert found.exit_code == 1
    (reproduce,) = re.findall(r"reproduce: +vmbus (.*)", found.stderr)
    assert reproduce.endswith(" --with opened=called --with pipe")
    again = runner.invoke(app, shlex.split(reproduce))
    assert (again.exit_code, again.stderr.splitlines()[0]) == (1, found.stderr.splitlines()[0])
    assert "with opened=called; open 0; cut 0 restore lost 0" in found.stderr


EACH_AREA = {
    "sub-channel": "open 0; line 1; open 8; ask 2 40 1; send 2 900 1; line 0; ask 1 0 1; answer 2",
    "pipe": "with pipe; open 500; ask 3 900 1; send 3 2500 1; doorbell 1; interrupt",
    "deferred": "open 0; defer 2; ask 3 8 1; doorbell 2; turn; interrupt",
    "pending": "open 0; ram 0; external 512; ask 2 0 1; doorbell 1; turn; ram 1; turn; interrupt",
    "pending in the ring": "with pending=in-ring; open 0; ram 0; external 512; ask 2 0 1; "
    "doorbell 1; turn; spurious; ram 1; turn; interrupt",
    "GPADL": "open 0; gpadl; map 0; touch; teardown; touch; unmap; gpadl; map 1; touch; close",
    "quota": "open 0; hold 2; quota 2; ask 5 0 1; doorbell 1; complete 0; quota 1; complete 2",
    "force-new": "with force-new; open 0; send 2 900 1; ask 2 0 1; interrupt; open 0; answer 2",
    "patient pause": "with pause=outgoing-too; open 0; send 3 2500 1; ask 2 40 1; interrupt",
}
"""A run that goes through each area; each of its points is explored with each mode."""


@pytest.mark.parametrize("area", EACH_AREA)
def test_every_restore_at_each_point_of_each_area(area: str) -> None:
    run = parse_run(EACH_AREA[area])
    settings = [item for item in run if isinstance(item, With)]
    steps = steps_of(run)
    memory = arenas()
    found = play(run, memory)
    for seed, mode in enumerate(Mode):
        for number, count in enumerate(found):
            for after in range(count + 1):
                signals = list(Signals)[(seed + number + after) % len(Signals)]
                cut = Cut(after, mode, signals, number + after)
                play([*settings, *steps[:number], cut, *steps[number:]], memory)


def test_given_steps_are_explored_at_each_of_their_points() -> None:
    result = CliRunner().invoke(
        app, ["conformance", "explore", "--steps", "open 0; ask 1 0 1; doorbell 1; interrupt"]
    )
    assert result.exit_code == 0
    # One write is five accesses, a callback is in the doorbell, and so on; and once for all.
    count = int(result.stdout.split()[0])
    assert count == len(
        list(points_of(play(parse_run("open 0; ask 1 0 1; doorbell 1; interrupt"))))
    )


# Runs.


@pytest.mark.parametrize("seed", range(20))
def test_a_run_is_its_text(seed: int) -> None:
    steps = draw_run(seed)
    assert steps == draw_run(seed)
    run = with_cut(steps, seed, EVERYWHERE)
    assert tuple(parse_run(format_run(run))) == run
    for step in steps_of(steps):
        for arg, (least, most) in zip(step.args, ARGUMENTS[step.op], strict=True):
            assert least <= arg <= most


def test_runs_have_every_step_and_points_every_restore() -> None:
    steps = [step for seed in range(60) for step in steps_of(draw_run(seed))]
    assert {step.op for step in steps} == set(Op)
    cuts = [draw_cut(0, number, 0) for number in range(600)]
    assert {(cut.mode, cut.signals) for cut in cuts} == {(m, s) for m in Mode for s in Signals}
    assert {cut.sizes for cut in cuts} > {0}


@pytest.mark.parametrize("seed", range(10))
def test_any_part_of_a_run_is_a_run(seed: int) -> None:
    rng = random.Random(seed)
    run = with_cut(draw_run(seed), seed, EVERYWHERE)
    for _ in range(5):
        play([item for item in run if rng.random() < 0.6])


def test_points_lie_after_each_access_and_each_callback() -> None:
    found = play(parse_run("open 0; ask 1 0 1; doorbell 1; interrupt; hold 1"))
    # Writing: `out`, `in`, mask, `out`. The host: one request. Reading one packet: mask; `in`,
    # `out`, pending; `in`, which is empty; mask, `in`.
    assert found == [0, 4, 1, 7, 0]
    with pytest.raises(BadRun):
        with_cut([Step(Op.CLOSE)], 0, "1")


def test_a_cut_beyond_the_last_access_is_at_the_end_of_the_step() -> None:
    play([*parse_run("open 0"), Cut(99), *parse_run("ask 1 0 1"), Cut(99), Step(Op.DOORBELL, (1,))])


def test_every_restore_with_every_signal_and_buffer_at_each_access() -> None:
    steps = [
        step
        for step in parse_run("open 511; send 3 900 1; ask 2 40 1; interrupt; answer 2")
        if isinstance(step, Step)
    ]
    found = play(steps)
    for mode in Mode:
        for signals in Signals:
            for number, count in enumerate(found):
                for after in range(count + 1):
                    cut = Cut(after, mode, signals, number + after)
                    play([*steps[:number], cut, *steps[number:]])


def test_a_call_that_raises_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.kmcl.ServerChannel.save_begin", lambda self: 1 // 0)
    with pytest.raises(Violation, match="crash: ZeroDivisionError") as caught:
        play([Cut(0)])
    assert caught.value.symptom is Symptom.CRASH
