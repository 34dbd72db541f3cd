# SPDX-License-Identifier: MIT
"""A pytest plugin: the fixture ``vmbus_vm`` boots and restores machines (docs/run.md).

A project that uses it says so in its conftest.py: ``pytest_plugins = ["emulator.testing.plugin"]``.
What it needs of the emulator is imported when a test asks for it, so that a test run without
machines does not pay for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from emulator.machine.config import MachineConfig
    from emulator.machine.vm import VirtualMachine

    VmbusVm = Callable[..., Awaitable[VirtualMachine]]


@pytest.fixture
def vmbus_logs(tmp_path: Path) -> Path:
    """Return the folder for the logs of the test's machines; a project can override it."""
    return tmp_path / "vmbus-logs"


@pytest_asyncio.fixture
async def vmbus_vm(request: pytest.FixtureRequest, vmbus_logs: Path) -> AsyncIterator[VmbusVm]:
    """Yield a coroutine function that starts a machine; all are killed at the end of the test.

    ``await vmbus_vm(machine)`` boots, ``await vmbus_vm(machine, snapshot=folder)`` restores what
    ``vm.save(folder)`` has saved. ``machine`` is a :class:`~emulator.machine.config.MachineConfig`
    or the path of a file as ``vmbus run`` takes it, relative to the test's own folder; further
    arguments change fields of the configuration. Raises what booting and restoring raise.
    """
    from emulator.machine.qemu import find_qemu
    from emulator.machine.vm import VirtualMachine

    count = 0
    async with AsyncExitStack() as stack:

        async def start(
            machine: MachineConfig | Path | str, *, snapshot: Path | None = None, **changes: Any
        ) -> VirtualMachine:
            nonlocal count
            count += 1
            config = _configured(machine, request.path.parent, changes)
            logs = vmbus_logs / f"{config.name}-{count}"
            vm = VirtualMachine(config, qemu=find_qemu(), logs=logs)
            await stack.enter_async_context(vm)
            await (vm.boot() if snapshot is None else vm.restore(snapshot))
            return vm

        yield start


def _configured(
    machine: MachineConfig | Path | str, folder: Path, changes: dict[str, Any]
) -> MachineConfig:
    import msgspec

    from emulator.lab.description import read_description

    if isinstance(machine, Path | str):
        machine = read_description(folder / machine)
    return msgspec.structs.replace(machine, **changes)
