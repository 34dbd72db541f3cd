# SPDX-License-Identifier: MIT
"""A KVM for tests: all of what Linux has, but for what is taken away."""

from __future__ import annotations

from emulator.machine import kvm

ALL_LEAVES: dict[int, kvm.Leaf] = {
    0x40000003: (0xFFFFFFFF, 0, 0, 0xFFFFFFFF),
    0x40000004: (0xFFFFFFFF, 0, 0, 0),
}


class FakeKvm:
    """A KVM with what it is given; a context manager as the real one."""

    def __init__(
        self,
        absent: tuple[str, ...] = (),
        leaves: dict[int, kvm.Leaf] | None = None,
        version: int = 12,
    ) -> None:
        self.absent = {kvm.by_name(name).number for name in absent}
        self.leaves = leaves
        self.version = version

    def __enter__(self) -> FakeKvm:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def api_version(self) -> int:
        return self.version

    def check(self, number: int) -> int:
        return 0 if number in self.absent else 1

    def hyperv_cpuid(self) -> dict[int, kvm.Leaf] | None:
        return self.leaves
