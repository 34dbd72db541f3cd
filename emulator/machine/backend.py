# SPDX-License-Identifier: MIT
"""The backend process: VMBus hosts, each of which serves one QEMU, and a control socket for each.

It follows vhost-user's rules for backend programs: it does not daemonise, ends on SIGTERM, fails
early with a status other than 0, and takes its socket by path or by descriptor. When the frontend
goes away it waits for the next one, with a guest forgotten (docs/vmbus-user.md, "Disconnect").

Several VMs share the process and nothing else: each :class:`Backend` has its own host, devices,
guest memory and sockets, and no object of one is known to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from emulator.devices import DeviceStateError
from emulator.link import Session, StateRefused
from emulator.machine import statefile
from emulator.machine.activation import is_listening, notify
from emulator.machine.config import HostConfig
from emulator.machine.control import ControlError, ControlServer
from emulator.machine.guestlog import vm_logger
from emulator.machine.host import VmbusHost
from emulator.machine.inspect import inspect, peak_private_kib
from emulator.machine.registry import RegistryError, registered
from emulator.machine.report import Host
from emulator.machine.tracesink import FileTrace, trace_command

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 1.0
"""How long the devices have, at the end, to complete what they hold."""


@dataclass(frozen=True, slots=True)
class Served:
    """One VM to serve. ``vmbus`` listens for QEMU or is connected to it; ``state`` is a file."""

    config: HostConfig
    vmbus: socket.socket
    control: socket.socket
    state: Path | None = None
    trace: FileTrace | None = None


class Backend:
    """One VM: its host, the connection to its QEMU, and its commands."""

    def __init__(self, served: Served) -> None:
        """Make the host, with the state that was kept if it fits."""
        self._served = served
        self._host = VmbusHost(served.config)
        self._log = vm_logger(log, served.config.vm)
        self._session: Session | None = None
        self._stack = contextlib.AsyncExitStack()

    async def start(self, ended: Callable[[], None]) -> None:
        """Take connections and commands from now on.

        ``ended`` is called when the one connection that was handed over, not accepted, has ended.
        """
        if self._served.trace is not None:
            self._served.trace.start(self._host.tracing)
        self._load()
        loop = asyncio.get_running_loop()
        vmbus, control = self._served.vmbus, self._served.control
        server = await ControlServer(_runner(self._host)).listen(control)
        # Not its context: from Python 3.12 on that waits for connections, and a trace has one
        # until its last record.
        self._stack.callback(server.close)
        self._stack.enter_context(_registered(self._served.config.vm, control.getsockname()))
        vmbus.setblocking(False)
        if is_listening(vmbus):
            loop.add_reader(vmbus, self._accept)
            self._stack.callback(loop.remove_reader, vmbus)
        else:
            self._host.frontend_gone = ended
            self._attach(vmbus)

    async def stop(self) -> bool:
        """Let go of the guest and keep the state; returns whether it was kept, or need not be."""
        await self._stack.aclose()
        host = self._host
        if host.connected:
            drained = asyncio.Event()
            host.stopping(drained.set)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await drained.wait()
            if self._session is not None:
                self._session.close()
            host.connection_lost(None)
        kept = self._keep()
        host.tracing.close()
        if host.tracing.senders:
            await asyncio.wait(host.tracing.senders)
        if self._served.trace is not None:
            await self._served.trace.finish()
        return kept

    def _accept(self) -> None:
        try:
            sock, _ = self._served.vmbus.accept()
        except OSError as error:
            # Nobody there any more, or no descriptor left: QEMU will try again.
            if not isinstance(error, BlockingIOError):
                self._log.error("cannot take a connection: %s", error)
            return
        if self._host.connected:
            self._log.error("a second frontend tried to connect; one VM has one backend")
            sock.close()
            return
        self._attach(sock)

    def _attach(self, sock: socket.socket) -> None:
        self._log.info("QEMU connected")
        self._session = Session(sock, self._host)
        self._host.attach(self._session)

    def _load(self) -> None:
        path = self._served.state
        if path is None:
            return
        try:
            state = statefile.read(path)
            if state is not None:
                self._host.load(state)
                self._log.info("goes on from %s", path)
        except (statefile.StateFileError, StateRefused) as error:
            refused = path.with_name(f"{path.name}.refused")
            self._log.error("starts without its state, kept as %s: %s", refused, error)
            path.replace(refused)

    def _keep(self) -> bool:
        path = self._served.state
        if path is None:
            return True
        try:
            statefile.write(path, self._host.save())
        except (OSError, StateRefused) as error:
            self._log.error("the state was not kept: %s", error)
            return False
        return True


async def serve(vms: list[Served]) -> bool:
    """Serve VMs until SIGTERM or SIGINT, or until the connections that were handed over have ended.

    Returns whether all states were kept. Raises OSError if a state file cannot be read.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _raise_descriptor_limit()
    backends = [Backend(served) for served in vms]
    lasting = set(backends)

    def ended(backend: Backend) -> None:
        lasting.discard(backend)
        if not lasting:
            stop.set()

    for backend in backends:
        await backend.start(partial(ended, backend))
    # What is alive now lives as long as the process: keep it out of every later collection.
    gc.collect()
    gc.freeze()
    notify("READY=1")
    await stop.wait()
    notify("STOPPING=1")
    return all([await backend.stop() for backend in backends])


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as we may: a VM has up to 4,094 eventfds for its channels."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _registered(vm: str, control: str) -> Iterator[None]:
    """List the VM for ``vmbus ps``; a machine runs as well without being listed."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(registered(vm, control))
        except RegistryError as error:
            log.warning("`vmbus ps` will not show %s: %s", vm, error)
        yield


def _inspect(host: VmbusHost, args: dict[str, Any]) -> Host:
    channel = args.get("channel")
    if channel is not None and not isinstance(channel, int):
        raise ControlError("inspect: `channel` is a channel id")
    try:
        return inspect(host, channel)
    except KeyError as error:
        ids = ", ".join(str(channel.channel_id) for channel in host.bus.table) or "none"
        raise ControlError(
            f"{host.config.vm} has no channel {channel}; its channels: {ids}"
        ) from error


def _runner(host: VmbusHost) -> Any:
    async def status(_: dict[str, Any]) -> Any:
        return {
            "pid": os.getpid(),
            "connected": host.connected,
            "channels": [str(channel) for channel in host.bus.channels()],
            "guest_errors": list(host.guest_errors),
            "memory": host.memory_regions(),
            "rings": host.rings(),
            "undrained": host.undrained(),
            "peak_private_kib": peak_private_kib(),
        }

    async def run(command: str, args: dict[str, Any]) -> Any:
        if command == "status":
            return await status(args)
        if command == "inspect":
            return _inspect(host, args)
        if command == "trace":
            return trace_command(host, args)
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
