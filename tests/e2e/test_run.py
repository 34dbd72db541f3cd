# SPDX-License-Identifier: MIT
"""``vmbus run``, ``stop`` and ``snapshot`` as a person uses them, and the pytest plugin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from emulator.machine.snapshot import SnapshotError
from emulator.machine.vm import VirtualMachine

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120
TOML = """
guest = "linux"
append = "vmbus.init=shell"
memory = "256M"
accel = "tcg"
devices = [{name = "probe", kind = "probe"}]
"""


class Run:
    """A `vmbus` command in the foreground, with a pipe for a terminal."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._seen = ""

    async def sees(self, pattern: str) -> re.Match[str]:
        """Read what it prints until it matches; what was before is forgotten."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while not (match := re.search(pattern, self._seen)):
                data = await self.process.stdout.read(4096)
                assert data, f"ended before {pattern!r}: {self._seen[-2000:]}"
                self._seen += data.decode("utf-8", "replace")
        self._seen = self._seen[match.end() :]
        return match

    def types(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    async def ends(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            rest = (await self.process.stdout.read()).decode("utf-8", "replace")
            return await self.process.wait(), self._seen + rest


Start = Callable[..., Awaitable[Run]]


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "vm.toml"
    path.write_text(TOML)
    return path


@pytest_asyncio.fixture
async def start(described: Path) -> AsyncIterator[Start]:
    started: list[asyncio.subprocess.Process] = []

    async def run(*args: str) -> Run:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "emulator.cli", *args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return Run(process)

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_machine_is_saved_ended_and_goes_on_from_its_snapshot(
    start: Start, described: Path
) -> None:
    run = await start("run", str(described))
    await run.sees("/ # ")
    run.types("kept=$((40 + 2)); echo set-$kept\n")
    await run.sees("set-42")

    second = await start("run", str(described))
    assert await second.ends() == (
        1,
        "error: machine vm runs already; give another one another name\n",
    )
    save = await start("snapshot", "save", "vm", "first", "--stop")
    status, words = await save.ends()
    assert (status, "saved vm as first" in words) == (0, True), words
    assert (await run.ends())[0] == 0
    listed = await start("snapshot", "list", "--json")
    (entry,) = json.loads((await listed.ends())[1])
    assert (entry["machine"], entry["name"], entry["problem"]) == ("vm", "first", "")

    again = await start("snapshot", "restore", str(described), "first")
    await again.sees("runs, under tcg")
    again.types("echo still-$kept\n")
    await again.sees("still-42")
    again.types("poweroff -f\n")
    await again.sees("vm: the guest powered off")
    assert (await again.ends())[0] == 0
    removed = await start("snapshot", "rm", "vm", "first")
    assert await removed.ends() == (0, "")


async def test_a_guest_is_asked_to_power_off_and_ended_when_it_does_not(
    start: Start, described: Path
) -> None:
    run = await start("run", "--grace", "1", str(described))
    await run.sees("/ # ")
    run.process.send_signal(signal.SIGTERM)
    await run.sees("stopping; once more to end it at once")
    # The test guest has nobody who listens to the power button.
    await run.sees("stopped; the guest did not shut down by itself")
    assert (await run.ends())[0] == 0
    ended = await start("stop", "vm")
    assert await ended.ends() == (1, "error: machine vm is not running (vmbus run)\n")


async def test_a_crash_of_the_guest_is_a_status_with_what_the_guest_said(
    start: Start, described: Path
) -> None:
    run = await start("run", str(described))
    await run.sees("/ # ")
    run.types("echo c > /proc/sysrq-trigger\n")
    await run.sees(r"vm: the guest crashed: Hyper-V crash parameters 0x\w+, 0x\w+")
    assert (await run.ends())[0] == 1


async def test_a_backend_that_is_killed_ends_the_machine_and_is_named(
    start: Start, described: Path
) -> None:
    run = await start("run", str(described))
    await run.sees("/ # ")
    listed = await start("ps", "--json")
    (entry,) = json.loads((await listed.ends())[1])
    os.kill(entry["pid"], signal.SIGKILL)
    status, words = await run.ends()
    assert status == 1
    assert "error: the VMBus backend was killed by signal 9" in words
    assert "logs: " in words
    assert "Traceback" not in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "{folder}/none.toml"], "none.toml: No such file"),
        (["run", "{folder}/vm.toml", "--snapshot", "none"], "none is not a snapshot"),
        (["run", "{folder}/vm.toml", "--snapshot", "../x"], "a name has"),
        (["snapshot", "save", "vm", "x"], "machine vm is not running"),
        (["snapshot", "rm", "vm", "x"], "no snapshot 'x'"),
        (["snapshot", "list", "a/b"], "a name has"),
    ],
)
async def test_a_mistake_is_one_line_and_a_status(
    start: Start, described: Path, args: list[str], words: str
) -> None:
    command = await start(*(arg.format(folder=described.parent) for arg in args))
    status, said = await command.ends()
    assert status == 1
    assert words in said
    assert "Traceback" not in said


async def test_summary_and_dry_run_say_what_a_file_amounts_to(
    start: Start, described: Path
) -> None:
    summary = await start("summary", "--json", str(described))
    found = json.loads((await summary.ends())[1])
    assert (found["name"], found["memory_mib"], found["max_version"]) == ("vm", 256, "6.0")
    dry = await start("run", "--dry-run", str(described))
    status, line = await dry.ends()
    assert status == 0
    assert "-device vmbus-user,chardev=vmbus" in line
    assert "vmbus.init=shell" in line


async def test_the_plugin_boots_saves_and_restores_as_the_documentation_shows(
    described: Path, tmp_path: Path, vmbus_vm: Callable[..., Awaitable[VirtualMachine]]
) -> None:
    vm = await vmbus_vm(described, append="vmbus.init=probe")
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50)
        await vm.save(tmp_path / "saved")
        await vm.kill()
        with pytest.raises(SnapshotError, match="smp: 1 in the snapshot, 2 here"):
            await vmbus_vm(described, snapshot=tmp_path / "saved", smp=2)
        vm = await vmbus_vm(described, snapshot=tmp_path / "saved")
        await vm.control("probe.wait", requests=50)
        assert (await vm.control("probe.finish"))["problems"] == []
