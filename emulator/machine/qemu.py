# SPDX-License-Identifier: MIT
"""QEMU as a child process: which binary, which accelerator, which command line.

The command line is a value that can be shown (``--dry-run``) and compared. Nothing of it is
hidden in a configuration file, and no default devices are taken.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulator.machine import kvm
from emulator.machine.built import NotBuilt, built_path
from emulator.machine.config import Accel, MachineConfig

HYPERV_FLAGS: Final = (
    "hv-relaxed",
    "hv-vapic",
    "hv-time",
    "hv-crash",
    "hv-reset",
    "hv-vpindex",
    "hv-runtime",
    "hv-synic",
    "hv-stimer",
    "hv-stimer-direct",
    "hv-frequencies",
    "hv-tlbflush",
    "hv-ipi",
    "hv-avic",
    "hv-spinlocks=0xfff",
)
"""What Windows and Linux want of a Hyper-V that has a VMBus (QEMU: docs/system/i386/hyperv.rst)."""

FIRMWARE_FOLDERS: Final = ("/usr/share/seabios", "/usr/share/qemu")
FIRMWARE: Final[Mapping[str, str]] = {
    "bios-256k.bin": "seabios",
    "linuxboot_dma.bin": "qemu-system-data",
    "kvmvapic.bin": "qemu-system-data",
}
"""Files that QEMU loads for our machines, and the Debian package that has each."""

_KVM: Final = kvm.DEVICE


class QemuError(Exception):
    """QEMU is missing, is not ours, or ended; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where a machine's sockets are; all of them are in its runtime folder."""

    vmbus: Path
    qmp: Path
    console: Path
    control: Path

    @classmethod
    def under(cls, folder: Path) -> Sockets:
        """Name the sockets of the machine whose runtime folder this is."""
        return cls(
            folder / "vmbus.sock",
            folder / "qmp.sock",
            folder / "console.sock",
            folder / "control.sock",
        )


def find_qemu() -> Path:
    """Return the patched QEMU: ``$VMBUS_QEMU``, or what ``scripts/build-qemu`` built last.

    Raises :class:`QemuError`.
    """
    if named := os.environ.get("VMBUS_QEMU"):
        path = Path(named)
        if not os.access(path, os.X_OK):
            raise QemuError(f"VMBUS_QEMU names {path}, which is not a program")
        return path
    try:
        return built_path("scripts", "build-qemu")
    except NotBuilt as error:
        raise QemuError(
            "the patched QEMU has not been built; run scripts/build-qemu or set VMBUS_QEMU"
        ) from error


def check_qemu(qemu: Path) -> str:
    """Return QEMU's version line; raises :class:`QemuError` if it lacks the vmbus-user device.

    A binary is asked once: a save asks while the guest stands still.
    """
    try:
        return _ask_qemu(qemu, qemu.stat().st_mtime_ns)
    except OSError as error:
        raise QemuError(f"{qemu} does not run: {error}") from error


@functools.cache
def _ask_qemu(qemu: Path, _changed: int) -> str:
    try:
        version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
        devices = subprocess.run(
            [qemu, "-machine", "none", "-device", "help"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise QemuError(f"{qemu} does not run: {error}") from error
    if '"vmbus-user"' not in devices.stdout:
        raise QemuError(
            f"{qemu} has no vmbus-user device: it was built without this project's patches; "
            "run scripts/build-qemu and unset VMBUS_QEMU"
        )
    return version.stdout.splitlines()[0]


def choose_accel(wanted: Accel) -> Accel:
    """Turn ``auto`` into an accelerator; raises :class:`QemuError` for a KVM that cannot."""
    if wanted is Accel.TCG:
        return wanted
    lack = _kvm_lacks()
    if not lack:
        return Accel.KVM
    if wanted is Accel.KVM:
        raise QemuError(
            f"KVM cannot run a Hyper-V guest here: {lack}; use --accel tcg "
            "(`vmbus doctor` tells all that is missing)"
        )
    return Accel.TCG


def _kvm_lacks() -> str:
    try:
        with kvm.Kvm(_KVM) as device:
            return kvm.lacks(device, HYPERV_FLAGS)
    except OSError as error:
        return kvm.device_problem(error, _KVM)


def _memory(config: MachineConfig) -> str:
    if not config.dimm_slots:
        return f"{config.memory_mib}M"
    return f"{config.memory_mib}M,slots={config.dimm_slots},maxmem={config.max_memory_mib}M"


def _boot(config: MachineConfig) -> list[str]:
    args = [] if config.firmware is None else ["-bios", str(config.firmware)]
    if config.kernel is not None:
        args += ["-kernel", str(config.kernel)]
        if config.initramfs is not None:
            args += ["-initrd", str(config.initramfs)]
        args += ["-append", f"console=ttyS0 panic=-1 {config.append}".rstrip()]
    return args


def command_line(
    qemu: Path, config: MachineConfig, sockets: Sockets, *, accel: Accel, incoming: bool
) -> list[str]:
    """Return the argument list of one machine; ``incoming`` waits for a snapshot to load."""
    cpu = "max" if accel is Accel.TCG else "host"
    args = [str(qemu), "-name", config.name, "-nodefaults", "-no-user-config", "-display", "none"]
    for folder in FIRMWARE_FOLDERS:
        args += ["-L", folder]
    args += [
        "-machine",
        f"q35,accel={accel.value},memory-backend=ram",
        "-cpu",
        ",".join((cpu, *HYPERV_FLAGS)),
        "-smp",
        str(config.smp),
        "-m",
        _memory(config),
        "-object",
        f"memory-backend-memfd,id=ram,size={config.memory_mib}M,share=on",
        *_boot(config),
        "-chardev",
        f"socket,id=console,path={sockets.console}",
        "-serial",
        "chardev:console",
        "-chardev",
        f"socket,id=qmp,path={sockets.qmp}",
        "-mon",
        "chardev=qmp,mode=control",
    ]
    for number, size in enumerate(config.dimms):
        args += [
            "-object",
            f"memory-backend-memfd,id=dimm{number},size={size}M,share=on",
            "-device",
            f"pc-dimm,id=slot{number},memdev=dimm{number}",
        ]
    if config.vmbus:
        args += [
            "-chardev",
            f"socket,id=vmbus,path={sockets.vmbus}",
            "-device",
            "vmbus-user,chardev=vmbus",
        ]
    args += config.qemu_args
    if incoming:
        args += ["-incoming", "defer"]
    return args
