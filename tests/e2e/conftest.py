# SPDX-License-Identifier: MIT
"""Fixtures that boot the test guest under the patched QEMU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from emulator.lab.demo import PROBE
from emulator.lab.images import GuestImage, find_image
from emulator.machine.config import Accel, MachineConfig
from emulator.machine.qemu import find_qemu
from emulator.machine.vm import VirtualMachine
from tests.e2e.guest_fixtures import programs

__all__ = ["programs"]

ConfigMaker = Callable[..., MachineConfig]


class MadeVm:
    """Makes machines that are killed at the end of the test."""

    def __init__(self, stack: AsyncExitStack, qemu: Path, folder: Path) -> None:
        self._stack = stack
        self._qemu = qemu
        self._folder = folder
        self._count = 0

    async def __call__(self, config: MachineConfig) -> VirtualMachine:
        self._count += 1
        vm = VirtualMachine(config, qemu=self._qemu, logs=self._folder / f"run-{self._count}")
        return await self._stack.enter_async_context(vm)


@pytest.fixture(scope="session")
def qemu() -> Path:
    return find_qemu()


@pytest.fixture(scope="session")
def image() -> GuestImage:
    return find_image()


@pytest.fixture
def make_config(image: GuestImage) -> ConfigMaker:
    def make(**changes: object) -> MachineConfig:
        values: dict[str, object] = {
            "name": "test",
            "kernel": image.kernel,
            "initramfs": image.initramfs,
            "accel": Accel.TCG,
            "memory_mib": 256,
            "append": "loglevel=7",
            "devices": (PROBE,),
        }
        return MachineConfig(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest_asyncio.fixture
async def make_vm(qemu: Path, tmp_path: Path) -> AsyncIterator[MadeVm]:
    async with AsyncExitStack() as stack:
        yield MadeVm(stack, qemu, tmp_path)
