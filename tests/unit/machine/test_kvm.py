# SPDX-License-Identifier: MIT
"""What is asked of KVM, checked against the kernel's header and with a KVM of our own."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from emulator.machine import kvm
from emulator.machine.config import Accel
from emulator.machine.qemu import HYPERV_FLAGS, QemuError, choose_accel
from tests.model.kvm import ALL_LEAVES, FakeKvm

HEADER = Path("/usr/include/linux/kvm.h")


@pytest.mark.skipif(not HEADER.exists(), reason="linux-libc-dev is not installed")
def test_capability_numbers_are_the_kernels() -> None:
    text = HEADER.read_text()
    numbers = dict(re.findall(r"^#define KVM_CAP_(\w+)\s+(\d+)", text, re.MULTILINE))
    for capability in kvm.CAPABILITIES:
        assert int(numbers[capability.name]) == capability.number, capability.name
    assert "#define KVM_GET_SUPPORTED_HV_CPUID _IOWR(KVMIO, 0xc1, struct kvm_cpuid2)" in text
    # _IOWR: direction 3, size of the header without entries, type 0xae.
    assert kvm._GET_SUPPORTED_HV_CPUID == 3 << 30 | 8 << 16 | 0xAE << 8 | 0xC1


def test_a_kvm_with_everything_can_run_our_machines() -> None:
    assert kvm.lacks(FakeKvm(leaves=ALL_LEAVES), HYPERV_FLAGS) == ""
    # One too old to be asked for its leaves is judged by its capabilities.
    assert kvm.lacks(FakeKvm(absent=("SYS_HYPERV_CPUID",)), HYPERV_FLAGS) == ""


@pytest.mark.parametrize("capability", kvm.CAPABILITIES, ids=lambda capability: capability.name)
def test_each_needed_capability_is_named_when_it_is_missing(capability: kvm.Capability) -> None:
    lack = kvm.lacks(FakeKvm((capability.name,), ALL_LEAVES), HYPERV_FLAGS)
    if capability.needed:
        assert f"KVM_CAP_{capability.name}" in lack
    else:
        assert lack == ""


def test_each_flag_with_a_bit_is_named_when_kvm_does_not_offer_it() -> None:
    assert {flag for flag in HYPERV_FLAGS if flag not in kvm.FLAG_BITS} == {"hv-spinlocks=0xfff"}
    for flag, places in kvm.FLAG_BITS.items():
        for leaf, register, bits in places:
            for bit in (1 << n for n in range(32) if bits >> n & 1):
                leaves = dict(ALL_LEAVES)
                words = list(leaves[leaf])
                words[register] &= ~bit
                leaves[leaf] = (words[0], words[1], words[2], words[3])
                assert flag in kvm.flags_missing(leaves, HYPERV_FLAGS)
                assert flag in kvm.lacks(FakeKvm(leaves=leaves), HYPERV_FLAGS)
    assert "hv-synic" in kvm.flags_missing({}, HYPERV_FLAGS)


def test_another_interface_version_is_refused() -> None:
    assert "version 11" in kvm.lacks(FakeKvm(leaves=ALL_LEAVES, version=11), HYPERV_FLAGS)


def test_cpuid_entries_are_read_by_function() -> None:
    entry = struct.pack("<10I", 0x40000003, 0, 0, 1, 2, 3, 4, 0, 0, 0)
    other = struct.pack("<10I", 0x40000004, 0, 0, 5, 6, 7, 8, 0, 0, 0)
    data = struct.pack("<II", 2, 0) + entry + other + bytes(40)
    assert kvm.parse_cpuid(data) == {0x40000003: (1, 2, 3, 4), 0x40000004: (5, 6, 7, 8)}
    with pytest.raises(ValueError, match="3 CPUID entries"):
        kvm.parse_cpuid(struct.pack("<II", 3, 0) + entry)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENODEV, errno.EIO])
def test_a_device_that_cannot_be_opened_is_told(number: int) -> None:
    text = kvm.device_problem(OSError(number, "strange"), "/dev/kvm")
    assert text.startswith("/dev/kvm")
    assert len(text.splitlines()) == 1


def test_the_choice_follows_what_kvm_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "Kvm", lambda device: FakeKvm(leaves=ALL_LEAVES))
    assert choose_accel(Accel.AUTO) is Accel.KVM
    assert choose_accel(Accel.KVM) is Accel.KVM
    monkeypatch.setattr(kvm, "Kvm", lambda device: FakeKvm(("HYPERV_SYNIC2",), ALL_LEAVES))
    assert choose_accel(Accel.AUTO) is Accel.TCG
    with pytest.raises(QemuError, match=r"HYPERV_SYNIC2.*vmbus doctor"):
        choose_accel(Accel.KVM)
