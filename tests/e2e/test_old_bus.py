# SPDX-License-Identifier: MIT
"""VMBus 0.13 and 1.1 through QEMU: event flag 0, event connection 2 and the interrupt page.

No kernel speaks these versions any more, so the guest is tests/guest/oldbus.c, without a kernel.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from emulator.link import Session
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.sockets import listen
from emulator.wire.version import Version
from tests.e2e.guest_program import Programs, Setup

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("version", [Version.V1, Version.WIN7], ids=str)
async def test_a_guest_of_an_old_version_talks_by_the_interrupt_page(
    programs: Programs, tmp_path: Path, version: Version, bits: int
) -> None:
    host = VmbusHost(HostConfig("old", (DeviceConfig("probe", "probe"),)))
    # Names of sockets are short; those of test folders are not.
    path = Path(os.path.relpath(tmp_path)) / "vmbus"  # noqa: ASYNC240 - reads no disk
    listener = listen(path)
    listener.setblocking(False)
    setup = Setup(
        "oldbus",
        bits=bits,
        vmbus=False,
        words=(f"version={version.value}",),
        qemu_args=(
            *("-object", "memory-backend-memfd,id=ram,size=64M,share=on"),
            *("-machine", "memory-backend=ram"),
            *("-chardev", f"socket,id=vmbus,path={path}", "-device", "vmbus-user,chardev=vmbus"),
        ),
    )
    async with programs.start(setup) as run:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        session = Session(sock, host)
        host.attach(session)
        await run.ended()
    assert list(host.guest_errors) == []
    session.close()
    listener.close()
