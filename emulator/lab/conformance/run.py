# SPDX-License-Identifier: MIT
"""Runs the scenarios end to end, one after the other."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from emulator.conformance.report import Recorded, Seen
from emulator.conformance.suite import Mismatch, Result, Scenario, Verdict
from emulator.lab.conformance import cases
from emulator.lab.conformance.bench import PATIENCE, Bench
from emulator.lab.conformance.cases import Case
from emulator.lab.conformance.unseen import UNSEEN
from emulator.machine.config import MachineConfig
from emulator.machine.qemu import check_qemu, choose_accel

_PATIENCE_FOR_OTHERS: Final = 900.0
_SHELL: Final = "not run: it is done at the shell of the Linux test guest"


def unknown(keys: Iterable[str]) -> list[str]:
    """Return those that are no scenario."""
    known = cases.scenarios()
    return [key for key in keys if key not in known]


def quick() -> list[str]:
    """Return the reduced set: what two boots and a few restores are enough for."""
    return [key for key, case in cases.load().items() if case.quick]


def recorded(results: Iterable[Result], qemu: Path, machine: MachineConfig, guest: str) -> Recorded:
    """Return a run as it is kept beside docs/conformance.md."""
    made = cases.load()
    return Recorded(
        qemu=check_qemu(qemu),
        guest=guest,
        accelerator=choose_accel(machine.accel).value,
        scenarios={
            result.scenario.key: Seen(
                result.verdict.value,
                result.observed,
                made[result.scenario.key].uses if result.scenario.key in made else "",
            )
            for result in results
        },
    )


async def run(
    keys: Iterable[str],
    *,
    qemu: Path,
    machine: MachineConfig,
    folder: Path,
    linux: bool = True,
    patience: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Run these scenarios, or all, in the order of the list; snapshots and logs go to ``folder``.

    ``machine`` has the device probe, and ``linux`` says whether it is the Linux test guest: some
    scenarios are done at its shell. ``patience`` is how many seconds a scenario may take, the boot
    that the first may need included; None: two minutes, or for another guest fifteen.
    Raises KeyError for a key that is no scenario.
    """
    made = cases.load()
    known = cases.scenarios()
    wanted = set(keys) or set(known)
    if missing := sorted(wanted - known.keys()):
        raise KeyError(missing[0])
    if patience is None:
        patience = PATIENCE if linux else _PATIENCE_FOR_OTHERS
    bench = Bench(qemu=qemu, machine=machine, folder=folder)
    results = []
    for key, scenario in known.items():
        if key not in wanted:
            continue
        if key in UNSEEN:
            results.append(Result(scenario, Verdict.INVISIBLE, UNSEEN[key], 0.0))
            continue
        if made[key].linux and not linux:
            results.append(Result(scenario, Verdict.INVISIBLE, _SHELL, 0.0))
            continue
        say(f"{key} {scenario.title}")
        results.append(await _run_one(scenario, made[key], bench, patience))
    return results


async def _run_one(scenario: Scenario, case: Case, bench: Bench, patience: float) -> Result:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(patience):
            observed = await case.run(bench)
        verdict = Verdict.PASSED if scenario.specified else Verdict.RECORDED
    except Mismatch as mismatch:
        observed, verdict = str(mismatch), Verdict.FAILED
    except TimeoutError:
        observed, verdict = f"not at its end after {patience:.0f} s", Verdict.FAILED
    except Exception as error:
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "conformance" in frame.filename
        ]
        where = f" ({ours[-1].name}, line {ours[-1].lineno})" if ours else ""
        observed = f"{type(error).__name__}: {error}{where}"
        verdict = Verdict.BROKEN
    return Result(scenario, verdict, observed, time.perf_counter() - began)
