# SPDX-License-Identifier: MIT
"""What a machine is made of: the typed configuration of one VM and of its VMBus host."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec


class DeviceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VMBus device: a name that is unique in the machine, and a registered kind."""

    name: str
    kind: str


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the backend process must know."""

    vm: str
    devices: tuple[DeviceConfig, ...] = ()


class Accel(StrEnum):
    """Accelerators a person can ask for."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


class MachineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM. ``memory_mib`` is guest RAM in MiB; ``append`` goes to the kernel's command line,
    ``qemu_args`` are further arguments of QEMU, for what has no field here.
    """

    name: str
    kernel: Path
    initramfs: Path
    smp: int = 1
    memory_mib: int = 512
    accel: Accel = Accel.TCG
    append: str = ""
    devices: tuple[DeviceConfig, ...] = ()
    vmbus: bool = True
    qemu_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values QEMU would refuse with less clear words."""
        if not 1 <= self.smp <= 64:
            raise ValueError(f"smp must be 1 to 64, not {self.smp}")
        if not 64 <= self.memory_mib <= 1 << 20:
            raise ValueError(f"memory must be 64 MiB to 1 TiB, not {self.memory_mib} MiB")
        names = [device.name for device in self.devices]
        if len(set(names)) != len(names):
            raise ValueError(f"device names must differ: {', '.join(names)}")

    @property
    def host(self) -> HostConfig:
        """The part that the backend needs."""
        return HostConfig(self.name, self.devices)
