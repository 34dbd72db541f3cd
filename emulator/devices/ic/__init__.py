# SPDX-License-Identifier: MIT
"""The integration services (docs/integration-services.md): one device each."""

from emulator.devices.ic.fcopy import FcopyDevice
from emulator.devices.ic.heartbeat import HeartbeatDevice
from emulator.devices.ic.kvp import KvpDevice
from emulator.devices.ic.shutdown import ShutdownDevice
from emulator.devices.ic.timesync import TimesyncDevice
from emulator.devices.ic.vss import VssDevice

__all__ = [
    "FcopyDevice",
    "HeartbeatDevice",
    "KvpDevice",
    "ShutdownDevice",
    "TimesyncDevice",
    "VssDevice",
]
