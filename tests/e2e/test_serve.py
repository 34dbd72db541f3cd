# SPDX-License-Identifier: MIT
"""``vmbus serve`` under a real QEMU: SIGTERM keeps its state, and the next one goes on from it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from emulator.machine import statefile
from emulator.machine.control import ControlClient
from emulator.machine.process import Child
from emulator.machine.qemu import Sockets
from emulator.machine.sockets import listen
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker
from tests.e2e.reconnect import RECONNECT_ARGS, connected

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120


class ServedMachine(VirtualMachine):
    """A machine whose backend is ``vmbus serve`` with a state file."""

    state: Path

    async def _spawn_backend(self, sockets: Sockets) -> None:
        vmbus, control = listen(sockets.vmbus), listen(sockets.control, 0o600)
        args = [sys.executable, "-m", "emulator.cli", "serve", f"--fd={vmbus.fileno()}"]
        args += [f"--control-fd={control.fileno()}", f"--vm={self.config.name}"]
        args += ["--device=probe", f"--state={self.state}"]
        with vmbus, control:
            fds = vmbus.fileno(), control.fileno()
            self.backend_child = await Child.start(
                "vmbus serve", args, self._logs / "serve.log", fds
            )
        self._control = await ControlClient.connect(sockets.control)


async def _converse(vm: VirtualMachine) -> None:
    await vm.control("probe.ready")
    await vm.control("probe.run")
    await vm.control("probe.wait", requests=50, completions=30)


async def test_a_backend_that_is_told_to_end_is_followed_by_one_with_its_state(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path
) -> None:
    config = make_config(name="served", qemu_args=RECONNECT_ARGS)
    vm = ServedMachine(config, qemu=qemu, logs=tmp_path / "logs")
    vm.state = tmp_path / "state"
    async with vm:
        await vm.boot()
        async with asyncio.timeout(PATIENCE):
            await _converse(vm)
            before = await vm.control("inspect")
            child, vm.backend_child = vm.backend_child, None
            assert child is not None
            # In the middle of a conversation: the devices complete what they hold, and it ends.
            await child.terminate()
            assert child.ended.result() == 0, child.last_words()
            assert statefile.read(vm.state)
            while await connected(vm):
                pass
            await vm.replace_backend()
            while not await connected(vm):
                pass
            lines = len(vm.console.lines)
            await vm.qmp("system_reset")
            await vm.watch(vm.console.wait_for("vmbus-guest: probe ready", lines))
            await _converse(vm)
            after = await vm.control("inspect")
            for key in ("id", "interface", "instance"):
                assert [c[key] for c in before["channels"]] == [c[key] for c in after["channels"]]
            assert (await vm.control("probe.finish"))["problems"] == []
    log = await asyncio.to_thread((tmp_path / "logs" / "serve.log").read_text)
    assert f"served: goes on from {vm.state}" in log
