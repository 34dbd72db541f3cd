# SPDX-License-Identifier: MIT
"""The main job: save a guest in mid-conversation, kill everything, restore, and lose nothing.

Boot; let guest and host talk; bring packets of every kind into flight; save; SIGKILL both
processes; then, as often as asked and each time from the same snapshot, restore in new
processes, let the conversation go on and end, and compare the two ledgers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from emulator.machine.config import OLDEST_OF_LINUX, DeviceConfig, MachineConfig
from emulator.machine.vm import VirtualMachine

PROBE: Final = DeviceConfig("probe", "probe")
_TALK_BEFORE: Final = {"requests": 300, "completions": 150}
_TALK_AFTER: Final = {"requests": 200, "completions": 100}
_PATIENCE: Final = 120.0
"""Seconds after which a step is taken to hang: a guest under TCG on a busy machine takes a few."""

Say = Callable[[str], None]


class DemoError(Exception):
    """A step did not come to its end."""


@dataclass(slots=True)
class Round:
    """One restore: how long it took, what was found again, how it ended."""

    restore_seconds: float
    restored: dict[str, int]
    rows: list[dict[str, Any]]
    problems: list[str]
    requests: int
    completions: int


@dataclass(slots=True)
class Report:
    """What the demo found."""

    guest: str = ""
    boot_seconds: float = 0
    save_seconds: float = 0
    snapshot_bytes: int = 0
    backend_peak_kib: int = 0
    at_save: dict[str, int] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled or disordered in any round."""
        return bool(self.rounds) and not any(found.problems for found in self.rounds)


async def run_demo(
    config: MachineConfig, *, qemu: Path, folder: Path, rounds: int, say: Say
) -> Report:
    """Run the main job with snapshot and logs under ``folder``; raises what the machine raises.

    Raises :class:`DemoError` for a version that its guest does not speak.
    """
    if config.max_version < OLDEST_OF_LINUX:
        raise DemoError(
            f"VMBus {config.max_version} is older than what Linux speaks; "
            f"allow {OLDEST_OF_LINUX} or newer"
        )
    report = Report()
    snapshot = folder / "snapshot"
    await _first_life(config, qemu, folder, snapshot, report, say)
    for number in range(1, rounds + 1):
        say(f"restoring in new processes ({number} of {rounds})")
        report.rounds.append(
            await _next_life(config, qemu, folder / f"round-{number}", snapshot, report)
        )
    return report


async def _first_life(
    config: MachineConfig, qemu: Path, folder: Path, snapshot: Path, report: Report, say: Say
) -> None:
    async with VirtualMachine(config, qemu=qemu, logs=folder / "first") as vm:
        start = time.monotonic()
        say("booting the guest")
        await vm.boot()
        ready = await _step(vm, "the guest's probe driver to load", vm.control("probe.ready"))
        report.guest = ready["guest"]
        report.boot_seconds = time.monotonic() - start
        say("guest and host talk")
        await vm.control("probe.run")
        await _step(vm, "the conversation to run", vm.control("probe.wait", **_TALK_BEFORE))
        say("bringing packets of every kind into flight")
        frozen = await _step(vm, "packets of every kind", vm.control("probe.freeze"))
        say("saving: " + ", ".join(f"{n} {kind}" for kind, n in frozen["in_flight"].items()))
        start = time.monotonic()
        manifest = await vm.save(snapshot)
        report.save_seconds = time.monotonic() - start
        report.snapshot_bytes = sum(entry.size for entry in manifest.files.values())
        report.at_save = (await vm.control("probe.counts"))["in_flight"]
        report.backend_peak_kib = (await vm.control("status"))["peak_private_kib"]
        say("killing QEMU and the backend with SIGKILL")


async def _next_life(
    config: MachineConfig, qemu: Path, logs: Path, snapshot: Path, report: Report
) -> Round:
    async with VirtualMachine(config, qemu=qemu, logs=logs) as vm:
        start = time.monotonic()
        await vm.restore(snapshot)
        seconds = time.monotonic() - start
        restored = (await vm.control("probe.counts"))["in_flight"]
        await _step(vm, "the guest to go on", vm.control("probe.thaw"))
        await _step(vm, "the conversation to go on", vm.control("probe.wait", **_TALK_AFTER))
        end = await _step(vm, "the conversation to end", vm.control("probe.finish"))
        status = await vm.control("status")
        report.backend_peak_kib = max(report.backend_peak_kib, status["peak_private_kib"])
        return Round(
            restore_seconds=seconds,
            restored=restored,
            rows=end["rows"],
            problems=[*end["problems"], *status["guest_errors"]],
            requests=end["host"]["requests_in_band"] + end["host"]["requests_gpa_direct"],
            completions=end["host"]["completions"],
        )


async def _step(vm: VirtualMachine, what: str, work: Any) -> Any:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await work
    except TimeoutError as error:
        raise DemoError(
            f"waited {_PATIENCE:.0f} s for {what}; the guest's last words:\n{vm.console.tail()}"
        ) from error
