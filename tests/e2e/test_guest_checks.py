# SPDX-License-Identifier: MIT
"""Each CPUID leaf, MSR and hypercall of the Hyper-V interface, checked by programs in the guest.

The programs in ``tests/guest`` have the expected values, statuses and faults; here is in which
machines they run. What a machine's flags promise is told to the program, which expects all of it
and nothing else.
"""

from __future__ import annotations

import dataclasses

import pytest

from emulator.machine.qemu import HYPERV_FLAGS
from tests.e2e.guest_program import Programs, Setup, without

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

ALL_FLAGS = (
    *without(HYPERV_FLAGS, "hv-xmm-input", "hv-tlbflush-ext", "hv-guest-idle"),
    "hv-xmm-input",
    "hv-tlbflush-ext",
    "hv-guest-idle",
)
"""Everything that TCG has."""

# msr and stimer look at what is there at reset, so they come before what changes it.
SUITES = "msr,cpuid,stimer,synic,time,apic,hypercall,ipi,flush,smp"
EVERYTHING = Setup(SUITES, flags=ALL_FLAGS, words=("masks",))
PLAIN = without(
    HYPERV_FLAGS,
    *("hv-avic", "hv-stimer-direct", "hv-xmm-input", "hv-tlbflush-ext", "hv-guest-idle"),
)
"""Without the enlightenments that make others needless: timer messages, auto EOI, APIC MSRs."""
ICOUNT = ("-icount", "shift=3,sleep=on")

MATRIX = {
    "1-mttcg": dataclasses.replace(EVERYTHING, cpus=1),
    "4-mttcg": dataclasses.replace(EVERYTHING, cpus=4),
    "8-mttcg-x2apic": dataclasses.replace(EVERYTHING, cpus=8, x2apic=True),
    "4-mttcg-plain": dataclasses.replace(EVERYTHING, cpus=4, flags=PLAIN),
    "2-mttcg-32bit": dataclasses.replace(EVERYTHING, cpus=2, bits=32),
    "2-mttcg-32bit-plain-x2apic": dataclasses.replace(
        EVERYTHING, cpus=2, bits=32, flags=PLAIN, x2apic=True
    ),
    "4-single-plain-x2apic": dataclasses.replace(
        EVERYTHING, cpus=4, accel="tcg,thread=single", flags=PLAIN, x2apic=True
    ),
    "2-single": dataclasses.replace(EVERYTHING, accel="tcg,thread=single"),
    "1-icount": dataclasses.replace(EVERYTHING, cpus=1, qemu_args=ICOUNT),
    "4-icount-plain": dataclasses.replace(EVERYTHING, cpus=4, flags=PLAIN, qemu_args=ICOUNT),
    "8-icount-x2apic": dataclasses.replace(EVERYTHING, cpus=8, x2apic=True, qemu_args=ICOUNT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRIX)
async def test_the_interface_is_as_specified(programs: Programs, name: str) -> None:
    await programs.passes(MATRIX[name])


BASE = ("hv-vpindex",)
SYNIC = ("hv-vpindex", "hv-synic")
STIMER = (*SYNIC, "hv-time", "hv-stimer")
FEW_FLAGS = {
    "relaxed": ("hv-relaxed",),
    "vapic": ("hv-vapic",),
    "vapic, avic": ("hv-vapic", "hv-avic"),
    "time": ("hv-time",),
    "crash": ("hv-crash",),
    "reset": ("hv-reset",),
    "vpindex": BASE,
    "runtime": ("hv-runtime",),
    "frequencies": ("hv-frequencies",),
    "spinlocks": ("hv-spinlocks=0x1fff",),
    "synic": SYNIC,
    "stimer": STIMER,
    "stimer-direct": (*STIMER, "hv-stimer-direct"),
    "tlbflush": (*BASE, "hv-tlbflush"),
    "tlbflush-ext": (*BASE, "hv-tlbflush", "hv-tlbflush-ext"),
    "ipi": (*BASE, "hv-ipi"),
    "xmm-input": ("hv-xmm-input",),
    "guest-idle": ("hv-guest-idle",),
}


@pytest.mark.parametrize("name", FEW_FLAGS)
async def test_a_flag_gives_what_it_stands_for_and_no_more(programs: Programs, name: str) -> None:
    setup = Setup("msr,cpuid,hypercall", flags=FEW_FLAGS[name], words=("masks",))
    await programs.passes(setup)


@pytest.mark.parametrize("cpu", ["max", "qemu64", "Nehalem"])
async def test_nothing_of_it_is_there_without_flags(programs: Programs, cpu: str) -> None:
    await programs.passes(Setup("cpuid", cpu=cpu, flags=()))


@pytest.mark.parametrize("cpu", ["qemu64", "qemu32", "Nehalem", "EPYC"])
async def test_the_leaves_do_not_depend_on_the_model(programs: Programs, cpu: str) -> None:
    bits = 32 if cpu == "qemu32" else 64
    await programs.passes(Setup("cpuid,msr,hypercall", cpu=cpu, flags=ALL_FLAGS, bits=bits))


async def test_the_version_is_what_the_user_says(programs: Programs) -> None:
    told = (
        "hv-version-id-build=20348",
        "hv-version-id-major=10",
        "hv-version-id-minor=1",
    )
    words = ("build=20348", "version=0xa0001")
    await programs.passes(Setup("cpuid", cpu=",".join(("max", *told)), words=words))
