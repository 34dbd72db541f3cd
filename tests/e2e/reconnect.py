# SPDX-License-Identifier: MIT
"""A machine whose backend can be killed and replaced while the guest runs (``reconnect-ms``)."""

from __future__ import annotations

import os
import signal

from emulator.machine.vm import VirtualMachine

RECONNECT_ARGS = ("-set", "chardev.vmbus.reconnect-ms=50")
"""QEMU arguments that make the device look for a new backend when one is gone."""


async def kill_backend(vm: VirtualMachine) -> None:
    """Kill the backend with SIGKILL; returns when QEMU has noticed."""
    child, qemu = vm.backend_child, vm.qemu_child
    assert child is not None
    assert qemu is not None
    os.kill(child.pid, signal.SIGKILL)
    await child.ended
    # From here on the death of the backend is what is wanted.
    vm.backend_child = None
    # Each question is a round trip through QEMU's main loop, which has to see the end meanwhile.
    while await connected(vm):
        pass


async def new_backend(vm: VirtualMachine) -> None:
    """Start a backend in place of the one that was killed; returns when QEMU has found it."""
    await vm.replace_backend()
    while not await connected(vm):
        pass


async def connected(vm: VirtualMachine) -> bool:
    """Ask QEMU whether a backend is connected and has answered the last reset."""
    devices = await vm.qmp("qom-list", path="/machine/peripheral-anon")
    (name,) = [device["name"] for device in devices if device["type"] == "child<vmbus-user>"]
    path = f"/machine/peripheral-anon/{name}"
    return bool(await vm.qmp("qom-get", path=path, property="connected"))


class Shell:
    """The shell at the guest's serial console (``vmbus.init=shell``)."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._count = 0

    async def run(self, line: str) -> int:
        """Run a line; returns its exit status."""
        self._count += 1
        console = self._vm.console
        start = len(console.lines)
        # The terminal echoes the line, in which the mark must not be read.
        await console.send_line(f'{line}; echo "shell"-{self._count}-$?-')
        match = await self._vm.watch(console.wait_for(rf"shell-{self._count}-(\d+)-", start))
        return int(match[1])
