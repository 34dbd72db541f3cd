# SPDX-License-Identifier: MIT
"""What a machine is made of: the typed configuration of one VM and of its VMBus host."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from emulator.bus.config import NEWEST_VERSION, BusConfig
from emulator.wire.version import Version

MAX_POLL_US: Final = 10_000
"""More would be busy waiting: of a core, all."""
OLDEST_OF_LINUX: Final = Version.WIN8
"""The oldest version in ``vmbus_versions[]`` of Linux since 6.0 (drivers/hv/connection.c)."""


def version_named(text: str) -> Version:
    """Return the VMBus version that a person calls "4.0" and the like; "" is the newest.

    Raises ValueError for what is no version.
    """
    return Version.named(text) if text else NEWEST_VERSION


Latency = Annotated[int, msgspec.Meta(ge=100, le=6553)]
"""Microseconds; a monitor page has 16 bits for it, in units of 100 ns."""


class DeviceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VMBus device: a name that is unique in the machine, and a registered kind.

    ``options`` are the kind's own (a controller's disks); ``emulator.devices`` checks them.
    ``monitored_us`` names channels of it, by role, that the guest is asked to signal by its monitor
    page, with the latency in microseconds at which the backend looks at that
    (``emulator.machine.monitor``).
    """

    name: str
    kind: str
    monitored_us: dict[str, Latency] = {}
    options: dict[str, Any] = {}


Positive = Annotated[int, msgspec.Meta(ge=1)]

# The command line reads this file and must start fast, so the defaults are not imported from the
# floors below; a test holds them against those.
_MAX_CHANNELS: Final = 2047


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much of the host one guest can take; docs/serve.md tells what happens at each limit."""

    channels: Annotated[int, msgspec.Meta(ge=1, le=_MAX_CHANNELS)] = _MAX_CHANNELS
    """Channels offered at a time. The default is what the event flags of a SINT have room for."""
    gpadls_per_channel: Positive = 256
    """GPADLs of one channel; Linux' drivers have 1 to 4."""
    gpadl_pages: Positive = 1280 * 256
    """Pages in all GPADLs of the guest. The default, 1,280 MiB, is what Hyper-V allows (Linux,
    Documentation/virt/hyperv/vmbus.rst)."""
    packets_in_flight: Positive = 1024
    """Requests of one channel that its device may hold; a device may ask for less, not for more."""
    queued_messages: Positive = 64
    """Host messages that the guest has not read when its own are no longer heard."""
    log_lines_per_second: Positive = 20
    """Lines that the log has, in any second, of what this guest does."""


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the backend process must know of one VM.

    ``poll_us`` is for how many microseconds it looks for the guest's next doorbell before it
    sleeps; None leaves that to the backend (``emulator.machine.doorbells.poll_for``).
    ``max_version`` is the newest VMBus version that a guest can negotiate, and
    ``max_restored_version`` the newest that the guest of a snapshot may have negotiated.
    With ``devices_may_differ`` a snapshot is taken although the machine has other devices now: what
    is missing is rescinded, what is new is offered, what has changed is rescinded and offered.
    """

    vm: str
    devices: tuple[DeviceConfig, ...] = ()
    poll_us: int | None = None
    quotas: Quotas = Quotas()
    max_version: Version = NEWEST_VERSION
    max_restored_version: Version = NEWEST_VERSION
    devices_may_differ: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _ = self.bus
        if self.poll_us is not None and not 0 <= self.poll_us <= MAX_POLL_US:
            raise ValueError(f"poll_us must be 0 to {MAX_POLL_US}, not {self.poll_us}")
        check_names("device", [device.name for device in self.devices])

    @property
    def bus(self) -> BusConfig:
        """The part that the bus needs; raises ValueError for versions that it does not speak."""
        return BusConfig(
            max_version=self.max_version,
            max_restored_version=self.max_restored_version,
            max_gpadls_per_channel=self.quotas.gpadls_per_channel,
            max_pages=self.quotas.gpadl_pages,
        )


class ServedVm(HostConfig, frozen=True, forbid_unknown_fields=True):
    """One VM of ``vmbus serve``, with where QEMU and the user find it, and what it keeps.

    Without ``socket_path`` the socket has to come from the service manager; without
    ``control_path`` it is made in the registry's folder. ``state`` is written at the end, ``trace``
    all the time: with the channels' packets if ``trace_packets``.
    """

    socket_path: Path | None = None
    control_path: Path | None = None
    state: Path | None = None
    trace: Path | None = None
    trace_packets: bool = False


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration file of ``vmbus serve`` for several VMs in one process."""

    vms: tuple[ServedVm, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be told apart."""
        if not self.vms:
            raise ValueError("there is no VM in it")
        check_names("VM", [vm.vm for vm in self.vms])
        for what in ("socket_path", "control_path", "state", "trace"):
            paths = [str(path) for vm in self.vms if (path := getattr(vm, what)) is not None]
            check_names(what, paths)


def check_names(what: str, names: list[str]) -> None:
    """Raise ValueError if a name is empty or there twice."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{what} names must differ: {', '.join(sorted(twice))}")
    if not all(names):
        raise ValueError(f"a {what} has no name")


class Accel(StrEnum):
    """Accelerators a person can ask for."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


class MachineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM. ``memory_mib`` is guest RAM in MiB; ``append`` goes to the kernel's command line.

    Without ``kernel`` the machine boots by its firmware: ``firmware`` is an image for QEMU's
    ``-bios``, by default SeaBIOS.
    ``dimms`` are the sizes in MiB of DIMMs that are in the machine beside it, and ``dimm_slots``
    how many there can be, up to ``max_memory_mib`` of memory in all. ``qemu_args`` are further
    arguments of QEMU, for what has no field here; ``poll_us``, ``devices_may_differ`` and the
    versions are HostConfig's.
    """

    name: str
    kernel: Path | None = None
    initramfs: Path | None = None
    smp: int = 1
    memory_mib: int = 512
    accel: Accel = Accel.TCG
    append: str = ""
    devices: tuple[DeviceConfig, ...] = ()
    vmbus: bool = True
    qemu_args: tuple[str, ...] = ()
    dimms: tuple[int, ...] = ()
    dimm_slots: int = 0
    max_memory_mib: int = 0
    poll_us: int | None = None
    quotas: Quotas = Quotas()
    max_version: Version = NEWEST_VERSION
    max_restored_version: Version = NEWEST_VERSION
    firmware: Path | None = None
    devices_may_differ: bool = False

    def __post_init__(self) -> None:
        """Refuse values QEMU would refuse with less clear words."""
        if self.kernel is None and (self.initramfs is not None or self.append):
            raise ValueError("initramfs and append must have a kernel that they are for")
        if not 1 <= self.smp <= 64:
            raise ValueError(f"smp must be 1 to 64, not {self.smp}")
        if not 64 <= self.memory_mib <= 1 << 20:
            raise ValueError(f"memory must be 64 MiB to 1 TiB, not {self.memory_mib} MiB")
        if not len(self.dimms) <= self.dimm_slots <= 256:
            raise ValueError(
                f"{len(self.dimms)} DIMMs do not fit {self.dimm_slots} slots (0 to 256)"
            )
        if any(size <= 0 or size % 128 for size in self.dimms):
            raise ValueError("a DIMM must have a multiple of 128 MiB")
        if self.dimm_slots and self.max_memory_mib < self.memory_mib + sum(self.dimms):
            raise ValueError(
                f"max_memory_mib {self.max_memory_mib} is less than the memory there is"
            )
        check_names("device", [device.name for device in self.devices])
        _ = self.host

    @property
    def host(self) -> HostConfig:
        """The part that the backend needs."""
        return HostConfig(
            self.name,
            self.devices,
            self.poll_us,
            self.quotas,
            self.max_version,
            self.max_restored_version,
            self.devices_may_differ,
        )
