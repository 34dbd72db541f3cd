# SPDX-License-Identifier: MIT
"""QEMU's command line as a value, and configurations that are refused before QEMU sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.machine.config import Accel, DeviceConfig, MachineConfig
from emulator.machine.qemu import QemuError, Sockets, check_qemu, command_line, find_qemu

CONFIG = MachineConfig("vm", Path("/k"), Path("/i"), smp=3, memory_mib=300, append="quiet")
SOCKETS = Sockets.under(Path("/run/vm"))


def line(config: MachineConfig = CONFIG, accel: Accel = Accel.TCG, incoming: bool = False) -> str:
    return " ".join(command_line(Path("/q"), config, SOCKETS, accel=accel, incoming=incoming))


def test_memory_is_shared_and_has_a_descriptor() -> None:
    assert "-object memory-backend-memfd,id=ram,size=300M,share=on" in line()
    assert "memory-backend=ram" in line()


def test_the_device_comes_and_goes_with_the_configuration() -> None:
    assert "-device vmbus-user,chardev=vmbus" in line()
    bare = MachineConfig("vm", Path("/k"), Path("/i"), vmbus=False)
    assert "vmbus-user" not in line(bare)


def test_only_the_accelerator_differs_between_kvm_and_tcg() -> None:
    kvm = line(accel=Accel.KVM).replace("accel=kvm", "accel=tcg").replace("-cpu host", "-cpu max")
    assert kvm == line()


def test_a_restore_differs_from_a_boot_by_incoming_only() -> None:
    assert line(incoming=True) == line() + " -incoming defer"


@pytest.mark.parametrize(
    "changes",
    [
        {"smp": 0},
        {"smp": 65},
        {"memory_mib": 1},
        {"devices": (DeviceConfig("a", "probe"), DeviceConfig("a", "probe"))},
    ],
)
def test_nonsense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        MachineConfig("vm", Path("/k"), Path("/i"), **changes)  # type: ignore[arg-type]


def test_a_named_qemu_must_be_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMBUS_QEMU", str(tmp_path / "none"))
    with pytest.raises(QemuError, match="VMBUS_QEMU"):
        find_qemu()


def test_a_qemu_that_does_not_run_is_told() -> None:
    with pytest.raises(QemuError, match="does not run"):
        check_qemu(Path("/bin/false"))
