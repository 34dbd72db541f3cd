# SPDX-License-Identifier: MIT
"""The backend of the benchmarks that need a whole one, in a process of its own.

It is the VMBus host of ``emulator.machine`` behind vmbus-user, on the backend's event loop, with
one device that offers as many channels as are asked for and answers each request at once.
``python -m bench.backend FD CHANNELS POLL_US`` serves the connected socket FD until it closes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

from emulator.devices import Device, DeviceStateError
from emulator.kmcl import ChannelPort, IncomingPacket, ServerChannel
from emulator.link import Session
from emulator.machine.backend import _raise_descriptor_limit
from emulator.machine.config import HostConfig
from emulator.machine.doorbells import DoorbellLoop
from emulator.machine.host import VmbusHost

INTERFACE: Final = uuid.UUID("6c6f6f70-0000-4000-8000-62656e636801")


def _complete(_: ServerChannel, packet: IncomingPacket) -> None:
    packet.complete(b"")


class Answering(Device):
    """A device that completes each request in its callback."""

    kind: ClassVar[str] = "answering"

    def __init__(self, name: str, vm: str, port: ChannelPort, count: int) -> None:
        """Make ``count`` channels."""
        super().__init__(name, vm, port)
        for number in range(count):
            channel = ServerChannel(port)
            channel.init_set_friendly_name(f"{name}/{number}")
            channel.init_set_target_interface_id(INTERFACE, self.instance_guid(str(number)))
            channel.init_set_process_packet_callbacks(_complete)
            self.channels[str(number)] = channel

    def save_own(self) -> bytes:
        """There is nothing."""
        return b""

    def restore_own(self, data: bytes) -> None:
        """Nobody restores a benchmark."""
        raise DeviceStateError("a benchmark's device cannot be restored")


class BackendProcess:
    """A backend that runs: its end of vmbus-user, and what it uses."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        """Made by :func:`started`."""
        self.process = process
        self.sock = sock

    def cpu_ns(self) -> int:
        """Return the CPU time that it has used, in nanoseconds (clock_getcpuclockid(3))."""
        return time.clock_gettime_ns(~self.process.pid << 3 | 2)

    def wakeups(self) -> int:
        """Return how often it was put to sleep or lost its CPU."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)


@contextmanager
def started(channels: int, poll_us: int, cpu: int) -> Iterator[BackendProcess]:
    """Run a backend with so many channels on one CPU."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = ["taskset", "-c", str(cpu), sys.executable, "-m", "bench.backend"]
    process = subprocess.Popen(
        [*command, str(theirs.fileno()), str(channels), str(poll_us)],
        pass_fds=(theirs.fileno(),),
        stdout=subprocess.PIPE,
    )
    theirs.close()
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the backend did not start")
        yield BackendProcess(process, ours)
    finally:
        ours.close()
        process.terminate()
        process.wait()
        process.stdout.close()


async def _serve(fd: int, channels: int, poll_us: int) -> None:
    _raise_descriptor_limit()
    host = VmbusHost(HostConfig("bench", poll_us=poll_us))
    device = Answering("answering", "bench", host, channels)
    host.devices[device.name] = device
    device.power_on()
    ended = asyncio.Event()
    host.frontend_gone = ended.set
    host.attach(Session(socket.socket(fileno=fd), host))
    gc.collect()
    gc.freeze()
    os.write(1, b"ready\n")
    await ended.wait()


def main() -> None:
    """Serve."""
    fd, channels, poll_us = map(int, sys.argv[1:])
    with asyncio.Runner(loop_factory=DoorbellLoop) as runner:
        runner.run(_serve(fd, channels, poll_us))


if __name__ == "__main__":
    main()
