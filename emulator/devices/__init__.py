# SPDX-License-Identifier: MIT
"""VSPs: one module or sub-package a device, each written on KMCL server channels and nothing lower.

A new device is one new module and one line in ``_KINDS``.
"""

from collections.abc import Mapping
from typing import Any, Final

from emulator.devices.base import Command, Device, DeviceState, DeviceStateError
from emulator.devices.ic import (
    FcopyDevice,
    HeartbeatDevice,
    KvpDevice,
    ShutdownDevice,
    TimesyncDevice,
    VssDevice,
)
from emulator.devices.probe import ProbeDevice
from emulator.devices.storage import IdeDevice, ScsiDevice
from emulator.kmcl import ChannelPort

_KINDS: Final[dict[str, type[Device]]] = {
    device.kind: device
    for device in (
        ProbeDevice,
        ScsiDevice,
        IdeDevice,
        FcopyDevice,
        HeartbeatDevice,
        KvpDevice,
        ShutdownDevice,
        TimesyncDevice,
        VssDevice,
    )
}


def make_device(
    kind: str, name: str, vm: str, port: ChannelPort, options: Mapping[str, Any] | None = None
) -> Device:
    """Make a device of a registered kind; ``options`` are those of its kind.

    Raises :class:`DeviceStateError` for any other kind, and for options that the kind does not have
    or that cannot be met, such as a disk that is not there.
    """
    if kind not in _KINDS:
        raise DeviceStateError(f"device {name}: unknown kind {kind!r}; known: {', '.join(_KINDS)}")
    return _KINDS[kind].make(name, vm, port, options or {})


def kinds() -> list[str]:
    """Name the registered kinds."""
    return sorted(_KINDS)


__all__ = ["Command", "Device", "DeviceState", "DeviceStateError", "kinds", "make_device"]
