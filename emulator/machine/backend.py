# SPDX-License-Identifier: MIT
"""The backend process: a VMBus host that serves one QEMU, and a control socket beside it.

It follows vhost-user's rules for backend programs: it does not daemonise, ends on SIGTERM, fails
early with a status other than 0, and takes its socket by path or by descriptor. When the frontend
goes away it waits for the next one, with a guest forgotten (docs/vmbus-user.md, "Disconnect").
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from emulator.devices import DeviceStateError
from emulator.link import Session
from emulator.machine.config import HostConfig
from emulator.machine.control import ControlError, ControlServer
from emulator.machine.host import VmbusHost
from emulator.machine.inspect import inspect, peak_private_kib
from emulator.machine.registry import RegistryError, registered
from emulator.machine.report import Host

log = logging.getLogger(__name__)


async def serve(config: HostConfig, listener: socket.socket, control: socket.socket) -> None:
    """Serve frontends that connect to ``listener``, one at a time, until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    host = VmbusHost(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def accept() -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        if host.connected:
            log.error("a second frontend tried to connect; one VM has one backend")
            sock.close()
            return
        log.info("QEMU connected")
        host.attach(Session(sock, host))

    server = await ControlServer(_runner(host)).listen(control)
    path = control.getsockname()
    loop.add_reader(listener, accept)
    # What is alive now lives as long as the process: keep it out of every later collection.
    gc.collect()
    gc.freeze()
    async with server:
        with _registered(config.vm, path):
            await stop.wait()
    loop.remove_reader(listener)


@contextlib.contextmanager
def _registered(vm: str, control: str) -> Iterator[None]:
    """List the VM for ``vmbus ps``; a machine runs as well without being listed."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(registered(vm, control))
        except RegistryError as error:
            log.warning("`vmbus ps` will not show this machine: %s", error)
        yield


def _inspect(host: VmbusHost, args: dict[str, Any]) -> Host:
    channel = args.get("channel")
    if channel is not None and not isinstance(channel, int):
        raise ControlError("inspect: `channel` is a channel id")
    try:
        return inspect(host, channel)
    except KeyError as error:
        ids = ", ".join(str(channel.channel_id) for channel in host.bus.table) or "none"
        raise ControlError(f"{host.name} has no channel {channel}; its channels: {ids}") from error


def _runner(host: VmbusHost) -> Any:
    async def status(_: dict[str, Any]) -> Any:
        return {
            "pid": os.getpid(),
            "connected": host.connected,
            "channels": [str(channel) for channel in host.bus.channels()],
            "guest_errors": list(host.guest_errors),
            "memory": host.memory_regions(),
            "rings": host.rings(),
            "peak_private_kib": peak_private_kib(),
        }

    async def run(command: str, args: dict[str, Any]) -> Any:
        if command == "status":
            return await status(args)
        if command == "inspect":
            return _inspect(host, args)
        name, _, verb = command.partition(".")
        device = host.devices.get(name)
        action = device.commands().get(verb) if device else None
        if action is None:
            raise ControlError(f"there is no command {command!r}")
        try:
            return await action(args)
        except (DeviceStateError, ValueError, TypeError) as error:
            raise ControlError(f"{command}: {error}") from error

    return run
