# SPDX-License-Identifier: MIT
"""What the host's KVM can do for a guest that wants a Hyper-V with a VMBus.

Asked of ``/dev/kvm`` itself, as QEMU does: capabilities by KVM_CHECK_EXTENSION, the CPUID leaves
that KVM can give a guest by KVM_GET_SUPPORTED_HV_CPUID. Numbers and layouts are those of Linux'
include/uapi/linux/kvm.h; which of them QEMU needs is read from its target/i386/kvm/kvm.c.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

DEVICE: Final = "/dev/kvm"
API_VERSION: Final = 12
"""The only version there has been since Linux 2.6.22; QEMU refuses any other."""

_GET_API_VERSION: Final = 0xAE00
_CHECK_EXTENSION: Final = 0xAE03
_GET_SUPPORTED_HV_CPUID: Final = 0xC008AEC1
"""_IOWR(KVMIO, 0xc1, struct kvm_cpuid2): 8 bytes of header, then the entries."""

_CPUID_ENTRY: Final = struct.Struct("<10I")
"""struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx, 3 words of padding."""

_MOST_LEAVES: Final = 256
"""Linux has some ten Hyper-V leaves; the kernel says E2BIG if there is too little room."""

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX and EDX of a CPUID leaf."""


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability of KVM: ``name`` without KVM_CAP_, its number, and what it is for.

    QEMU cannot run this project's machines without one that is ``needed``.
    """

    name: str
    number: int
    needed: bool
    purpose: str


CAPABILITIES: Final = (
    Capability("IRQCHIP", 0, True, "interrupt controllers in the kernel"),
    Capability("USER_MEMORY", 3, True, "guest RAM from user space"),
    Capability("IRQ_ROUTING", 25, True, "a GSI route for each SINT"),
    Capability("IRQFD", 32, True, "SINTs raised by eventfd"),
    Capability("IRQFD_RESAMPLE", 82, True, "the guest's EOI of a SINT by eventfd"),
    Capability("IOEVENTFD", 36, False, "doorbells of virtio devices"),
    Capability("SIGNAL_MSI", 77, False, "interrupts of PCI devices"),
    Capability("HYPERV", 44, True, "Hyper-V MSRs and hypercalls"),
    Capability("HYPERV_VAPIC", 45, True, "APIC MSRs and the VP assist page (hv-vapic)"),
    Capability("HYPERV_SPIN", 46, True, "the long spin wait hypercall (hv-spinlocks)"),
    Capability("HYPERV_TIME", 96, True, "reference counter and TSC page (hv-time)"),
    Capability("HYPERV_SYNIC2", 148, True, "SynIC with pages that QEMU lays out (hv-synic)"),
    Capability("HYPERV_VP_INDEX", 149, True, "VP indices that QEMU sets (hv-vpindex)"),
    Capability("HYPERV_EVENTFD", 154, False, "doorbells by eventfd; else by an exit to QEMU"),
    Capability("HYPERV_TLBFLUSH", 155, True, "TLB flush hypercalls (hv-tlbflush)"),
    Capability("HYPERV_SEND_IPI", 161, True, "IPI hypercalls (hv-ipi)"),
    Capability("HYPERV_CPUID", 167, False, "asking which Hyper-V CPUID leaves there are"),
    Capability("SYS_HYPERV_CPUID", 191, False, "the same without a virtual CPU"),
    Capability("HYPERV_ENFORCE_CPUID", 199, False, "no more than the leaves say"),
    Capability("HYPERV_ENLIGHTENED_VMCS", 163, False, "nested guests on Intel (hv-evmcs)"),
    Capability("HYPERV_DIRECT_TLBFLUSH", 175, False, "TLB flush by nested guests"),
)

_FEATURES: Final = 0x40000003
_RECOMMENDATIONS: Final = 0x40000004
_EAX, _EDX = 0, 3

FLAG_BITS: Final[Mapping[str, tuple[tuple[int, int, int], ...]]] = {
    "hv-relaxed": ((_RECOMMENDATIONS, _EAX, 1 << 5),),
    "hv-vapic": ((_FEATURES, _EAX, 1 << 4),),
    "hv-time": ((_FEATURES, _EAX, 1 << 1 | 1 << 9),),
    "hv-crash": ((_FEATURES, _EDX, 1 << 10),),
    "hv-reset": ((_FEATURES, _EAX, 1 << 7),),
    "hv-vpindex": ((_FEATURES, _EAX, 1 << 6),),
    "hv-runtime": ((_FEATURES, _EAX, 1 << 0),),
    "hv-synic": ((_FEATURES, _EAX, 1 << 2),),
    "hv-stimer": ((_FEATURES, _EAX, 1 << 3),),
    "hv-stimer-direct": ((_FEATURES, _EDX, 1 << 19),),
    "hv-frequencies": ((_FEATURES, _EAX, 1 << 11), (_FEATURES, _EDX, 1 << 8)),
    "hv-tlbflush": ((_RECOMMENDATIONS, _EAX, 1 << 2 | 1 << 11),),
    "hv-ipi": ((_RECOMMENDATIONS, _EAX, 1 << 10 | 1 << 11),),
    "hv-avic": ((_RECOMMENDATIONS, _EAX, 1 << 9),),
}
"""For a flag of QEMU's ``-cpu``: leaf, register (0 is EAX) and bits that KVM must offer.

TLFS 2.4 (feature identification); QEMU's table in target/i386 ties them to the flags.
``hv-spinlocks`` has no bit.
"""


class KvmInterface(Protocol):
    """What is asked of KVM; tests have one of their own."""

    def api_version(self) -> int:
        """Return the version of KVM's interface."""
        ...

    def check(self, number: int) -> int:
        """Return what KVM_CHECK_EXTENSION says: 0 if the capability is not there."""
        ...

    def hyperv_cpuid(self) -> dict[int, Leaf] | None:
        """Return the Hyper-V CPUID leaves that KVM offers; None if it cannot be asked."""
        ...


class Kvm:
    """An open ``/dev/kvm``. A context manager; every call may raise OSError."""

    def __init__(self, device: str = DEVICE) -> None:
        """Open the device; raises OSError if it is not there or not for this user."""
        self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def api_version(self) -> int:
        """Return the version of KVM's interface."""
        return fcntl.ioctl(self._fd, _GET_API_VERSION, 0)

    def check(self, number: int) -> int:
        """Return what KVM_CHECK_EXTENSION says: 0 if the capability is not there."""
        return fcntl.ioctl(self._fd, _CHECK_EXTENSION, number)

    def hyperv_cpuid(self) -> dict[int, Leaf] | None:
        """Return the Hyper-V CPUID leaves that KVM offers.

        None if there is no KVM_CAP_SYS_HYPERV_CPUID (Linux 5.11): before, a virtual CPU is needed.
        """
        if self.check(by_name("SYS_HYPERV_CPUID").number) <= 0:
            return None
        buffer = array.array("I", bytes(8 + _MOST_LEAVES * _CPUID_ENTRY.size))
        buffer[0] = _MOST_LEAVES
        fcntl.ioctl(self._fd, _GET_SUPPORTED_HV_CPUID, buffer, True)
        return parse_cpuid(buffer.tobytes())


def parse_cpuid(data: bytes) -> dict[int, Leaf]:
    """Return the leaves in a struct kvm_cpuid2, by function.

    Raises ValueError if it says that it has more entries than it has.
    """
    count, _ = struct.unpack_from("<II", data)
    if 8 + count * _CPUID_ENTRY.size > len(data):
        raise ValueError(f"{count} CPUID entries do not fit in {len(data)} bytes")
    leaves: dict[int, Leaf] = {}
    for number in range(count):
        entry = _CPUID_ENTRY.unpack_from(data, 8 + number * _CPUID_ENTRY.size)
        leaves[entry[0]] = (entry[3], entry[4], entry[5], entry[6])
    return leaves


def by_name(name: str) -> Capability:
    """Return a capability of :data:`CAPABILITIES`; raises KeyError."""
    for capability in CAPABILITIES:
        if capability.name == name:
            return capability
    raise KeyError(name)


def flags_missing(leaves: Mapping[int, Leaf], flags: tuple[str, ...]) -> list[str]:
    """Return those of QEMU's ``hv-*`` flags that these leaves do not allow."""
    nothing = (0, 0, 0, 0)
    return [
        flag
        for flag in flags
        if any(
            leaves.get(leaf, nothing)[register] & bits != bits
            for leaf, register, bits in FLAG_BITS.get(flag, ())
        )
    ]


def lacks(kvm: KvmInterface, flags: tuple[str, ...]) -> str:
    """Say why this KVM cannot run a machine with these flags; empty if it can."""
    version = kvm.api_version()
    if version != API_VERSION:
        return f"KVM's interface has version {version}, not {API_VERSION}"
    missing = [
        f"KVM_CAP_{capability.name}"
        for capability in CAPABILITIES
        if capability.needed and kvm.check(capability.number) <= 0
    ]
    if missing:
        more = f" and {len(missing) - 2} more" if len(missing) > 3 else ""
        return f"the kernel has no {', '.join(missing[:2] if more else missing)}{more}"
    leaves = kvm.hyperv_cpuid()
    if leaves is not None and (refused := flags_missing(leaves, flags)):
        return f"KVM does not offer {', '.join(refused)}"
    return ""


def device_problem(error: OSError, device: str = DEVICE) -> str:
    """Say in one line why the device cannot be used, and what to do."""
    match error.errno:
        case errno.ENOENT:
            return f"{device} is not there: load kvm_intel or kvm_amd (in a VM: enable nesting)"
        case errno.EACCES | errno.EPERM:
            return f"{device} is not for this user: add it to the group kvm and log in again"
        case errno.ENODEV | errno.ENXIO:
            return f"{device} has no driver: the CPU or the firmware does not allow it"
        case _:
            return f"{device}: {error.strerror}"
