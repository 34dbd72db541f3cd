# SPDX-License-Identifier: MIT
"""The backend as a program: from options, files and inherited sockets to what is to be served.

``vmbus serve`` and ``python -m emulator.machine`` are two faces of this. A socket comes by path, by
descriptor or from the service manager (``emulator.machine.activation``), in this order.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from emulator.devices import DeviceStateError, kinds
from emulator.kmcl import KmclError
from emulator.link.protocol import PROTOCOL_VERSION
from emulator.machine.activation import ActivationError, inherited_sockets, unix_socket
from emulator.machine.backend import Served, serve
from emulator.machine.config import DeviceConfig, HostConfig, ServeConfig, ServedVm
from emulator.machine.doorbells import DoorbellLoop
from emulator.machine.guestlog import LimitedHandler
from emulator.machine.registry import RegistryError, folder
from emulator.machine.sockets import listen
from emulator.machine.tracesink import FileTrace
from emulator.trace.feed import Wanted

_CONTROL_MODE: Final = 0o600
_numbers: Final = itertools.count()


class UsageError(Exception):
    """The options, or the configuration file, ask for something that cannot be; one line."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options as they were given."""

    config: Path | None = None
    vm: str = ""
    devices: tuple[str, ...] = ()
    socket_path: Path | None = None
    fd: int | None = None
    control_path: Path | None = None
    control_fd: int | None = None
    state: Path | None = None
    trace: Path | None = None
    trace_packets: bool = False


def capabilities() -> str:
    """Return what ``--print-capabilities`` prints, in the form of QEMU's vhost-user.json.

    ``features`` are options that not every backend has, as they are for vhost-user-blk.
    """
    return json.dumps(
        {
            "type": "vmbus-user",
            "protocol-version": PROTOCOL_VERSION,
            "features": ["config", "control-path", "control-fd", "device", "state", "trace", "vm"],
            "devices": kinds(),
        }
    )


def run(options: Options) -> int:
    """Serve until SIGTERM; returns the exit status.

    Raises :class:`UsageError` and OSError before anything is served.
    """
    with contextlib.ExitStack() as stack:
        vms = gather(options, os.environ, stack)
        lines = {vm.config.vm: vm.config.quotas.log_lines_per_second for vm in vms}
        logging.basicConfig(
            level=logging.INFO, handlers=[LimitedHandler(lines, max(lines.values()))]
        )
        try:
            with asyncio.Runner(loop_factory=DoorbellLoop) as runner:
                return 0 if runner.run(serve(vms)) else 1
        except (DeviceStateError, KmclError) as error:
            raise UsageError(str(error)) from error


def gather(
    options: Options, environ: MutableMapping[str, str], stack: contextlib.ExitStack
) -> list[Served]:
    """Open the sockets of each VM; they are closed and their paths removed with ``stack``.

    Raises :class:`UsageError` and OSError.
    """
    try:
        inherited = inherited_sockets(environ)
    except ActivationError as error:
        raise UsageError(str(error)) from error
    for _, sock in inherited:
        stack.callback(sock.close)
    configs = _with_options(_configs(options), options)
    single = len(configs) == 1
    served: list[Served] = []
    for config in configs:
        vmbus = _vmbus(config, options, inherited, single, stack)
        control = _control(config, options, inherited, single, stack)
        host = HostConfig(*(getattr(config, name) for name in HostConfig.__struct_fields__))
        if not single and host.poll_us is None:
            # The loop is everybody's: none may poll for its own guest unless it is told to.
            host = msgspec.structs.replace(host, poll_us=0)
        trace = None
        if config.trace is not None:
            trace = FileTrace(config.trace, Wanted(packets=config.trace_packets))
        served.append(Served(host, vmbus, control, config.state, trace))
    if inherited:
        names = ", ".join(name or "without a name" for name, _ in inherited)
        raise UsageError(f"the service manager handed over sockets nobody wants: {names}")
    return served


def _configs(options: Options) -> list[ServedVm]:
    if options.config is None:
        return [_from_options(options)]
    if options.vm or options.devices:
        raise UsageError("--vm and --device are for a backend without --config")
    try:
        return _read(options.config)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"{options.config}: {error}") from error


def _from_options(options: Options) -> ServedVm:
    devices = []
    for text in options.devices:
        kind, _, name = text.partition(":")
        devices.append(DeviceConfig(name or kind, kind))
    try:
        return ServedVm(options.vm or "vm", tuple(devices))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read(path: Path) -> list[ServedVm]:
    data: Any = (
        msgspec.toml.decode(path.read_bytes())
        if path.suffix == ".toml"
        else msgspec.json.decode(path.read_bytes())
    )
    if isinstance(data, dict) and "vms" in data:
        return list(msgspec.convert(data, ServeConfig, dec_hook=_path).vms)
    return [msgspec.convert(data, ServedVm, dec_hook=_path)]


def _path(wanted: type, value: object) -> object:
    """Make a Path of a string, which msgspec does not do by itself."""
    if wanted is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError(f"expected a path, got {value!r}")


def _with_options(configs: list[ServedVm], options: Options) -> list[ServedVm]:
    one_only = {
        "--socket-path": options.socket_path,
        "--fd": options.fd,
        "--control-path": options.control_path,
        "--control-fd": options.control_fd,
        "--state": options.state,
        "--trace": options.trace,
        "--trace-packets": options.trace_packets or None,
    }
    given = [name for name, value in one_only.items() if value is not None]
    if len(configs) > 1:
        if given:
            raise UsageError(f"{given[0]} is for one VM; {options.config} has {len(configs)}")
        return configs
    for path, fd in (("--socket-path", "--fd"), ("--control-path", "--control-fd")):
        if path in given and fd in given:
            raise UsageError(f"{path} and {fd}: choose one")
    changes: dict[str, Path | bool] = {}
    if options.socket_path is not None:
        changes["socket_path"] = options.socket_path
    if options.control_path is not None:
        changes["control_path"] = options.control_path
    if options.state is not None:
        changes["state"] = options.state
    if options.trace is not None:
        changes["trace"] = options.trace
    if options.trace_packets:
        changes["trace_packets"] = True
    return [msgspec.structs.replace(configs[0], **changes)]


def _vmbus(
    config: ServedVm,
    options: Options,
    inherited: list[tuple[str, socket.socket]],
    single: bool,
    stack: contextlib.ExitStack,
) -> socket.socket:
    if options.fd is not None:
        return _descriptor(options.fd, "--fd", stack)
    if config.socket_path is not None:
        return _listen(config.socket_path, None, stack)
    for index, (name, _) in enumerate(inherited):
        # systemd names a socket after its unit if it is not told a name.
        if name == config.vm or (single and name not in ("control", f"{config.vm}.control")):
            return inherited.pop(index)[1]
    if single:
        raise UsageError("no socket for QEMU: give --socket-path or --fd, or use socket activation")
    raise UsageError(f"VM {config.vm}: no socket for QEMU; give it a socket_path")


def _control(
    config: ServedVm,
    options: Options,
    inherited: list[tuple[str, socket.socket]],
    single: bool,
    stack: contextlib.ExitStack,
) -> socket.socket:
    if options.control_fd is not None:
        return _descriptor(options.control_fd, "--control-fd", stack)
    path = config.control_path
    if path is None:
        for index, (name, _) in enumerate(inherited):
            if name == f"{config.vm}.control" or (single and name == "control"):
                return inherited.pop(index)[1]
        try:
            path = folder() / f"{os.getpid()}-{next(_numbers)}.sock"
        except RegistryError as error:
            raise UsageError(f"{error}; or give --control-path") from error
    return _listen(path, _CONTROL_MODE, stack)


def _listen(path: Path, mode: int | None, stack: contextlib.ExitStack) -> socket.socket:
    sock = listen(path, mode)
    stack.callback(sock.close)
    stack.callback(_remove, path, path.lstat().st_ino)
    return sock


def _remove(path: Path, inode: int) -> None:
    """Remove the path, unless a backend that was started since has put its own socket there."""
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _descriptor(fd: int, option: str, stack: contextlib.ExitStack) -> socket.socket:
    try:
        sock = unix_socket(fd, f"{option} {fd}")
    except ActivationError as error:
        raise UsageError(str(error)) from error
    stack.callback(sock.close)
    return sock
