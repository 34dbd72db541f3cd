# SPDX-License-Identifier: MIT
"""VSPs: one module or sub-package a device, each written on KMCL server channels and nothing lower.

A new device is one new module and one line in ``_KINDS``.
"""

from typing import Final

from emulator.devices.base import Command, Device, DeviceState, DeviceStateError
from emulator.devices.probe import ProbeDevice
from emulator.kmcl import ChannelPort

_KINDS: Final[dict[str, type[Device]]] = {ProbeDevice.kind: ProbeDevice}


def make_device(kind: str, name: str, vm: str, port: ChannelPort) -> Device:
    """Make a device of a registered kind; raises :class:`DeviceStateError` for any other."""
    if kind not in _KINDS:
        raise DeviceStateError(f"device {name}: unknown kind {kind!r}; known: {', '.join(_KINDS)}")
    return _KINDS[kind](name, vm, port)


def kinds() -> list[str]:
    """Name the registered kinds."""
    return sorted(_KINDS)


__all__ = ["Command", "Device", "DeviceState", "DeviceStateError", "kinds", "make_device"]
