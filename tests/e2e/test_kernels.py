# SPDX-License-Identifier: MIT
"""Stock Debian kernels of three generations take their clock, timers and bus from us, in silence.

The kernels are those of ``guest-images/linux/build --kernel``. Each boots with our VMBus host and
reports (``vmbus.report``) which clock it uses, how often which timer has interrupted each CPU, and
every line of its log of the level "warning" or worse.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from emulator.lab.demo import run_demo
from emulator.lab.images import KERNELS, GuestImage, KernelUnavailable, build_image
from emulator.machine import qemu as qemu_module
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = pytest.mark.e2e

PATIENCE = 180

HARMLESS = {
    # SeaBIOS has set the boot CPU's MTRRs only. An unpatched QEMU without hv-* flags has it too.
    r"mtrr: your CPUs had inconsistent (fixed MTRR|variable MTRR|MTRRdefType) settings": "SeaBIOS",
    # `-cpu max` is an AMD CPU, and QEMU's ACPI tables have no _CPC. Without hv-* flags as well.
    r"amd_pstate: the _CPC object is not present in SBIOS or ACPI disabled": "no _CPC in QEMU",
    # The rest of "Booting SMP configuration: ... CPUs: #1": a continued line has the default level.
    r"^<4>\[[ .\d]+\]( +#\d+)+$": "a continued line",
    # The HPET stands in for the RTC's interrupt; its timer was late because the host was busy.
    r"hpet: Lost \d+ RTC interrupts": "a busy host",
    # The host has taken the CPU away while the guest was in a timer's interrupt.
    r"hrtimer: interrupt took \d+ ns": "a busy host",
    # Ours: the module is not part of the kernel and not signed by Debian.
    r"vmbus_probe: loading out-of-tree module taints kernel": "the probe",
    r"vmbus_probe: module verification failed": "the probe",
}
"""What a kernel may complain of, and where that comes from. No line about Hyper-V belongs here."""

NO_TIMER_MESSAGES = "Hyper-V: stimer setup failed with error -22"


@dataclass
class Report:
    """What one kernel has reported; interrupt counts by name and then by CPU."""

    clocksource: str = ""
    before: dict[str, list[int]] = field(default_factory=dict)
    after: dict[str, list[int]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def read_report(lines: list[str]) -> Report:
    """Return what the lines of a console say."""
    report = Report()
    for line in lines:
        _, marker, text = line.partition("vmbus-guest: report ")
        word, _, rest = text.partition(" ")
        match word if marker else "":
            case "clocksource":
                report.clocksource = rest
            case "before" | "after":
                name, _, counts = rest.partition(":")
                numbers = [int(number) for number in re.findall(r"\b\d+\b", counts)]
                (report.before if word == "before" else report.after)[name] = numbers
            case "complaint":
                report.complaints.append(rest)
            case _:
                pass
    return report


def serious(complaints: list[str]) -> list[str]:
    """Return the complaints that nothing in ``HARMLESS`` explains."""
    return [line for line in complaints if not any(re.search(text, line) for text in HARMLESS)]


async def reported(vm: VirtualMachine) -> Report:
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.console.wait_for("vmbus-guest: report end"))
    return read_report(vm.console.lines)


@pytest.fixture(params=KERNELS, scope="session")
def kernel(request: pytest.FixtureRequest) -> tuple[str, GuestImage]:
    """Return the name and the image of each kernel; the default one is never skipped."""
    try:
        return request.param, build_image(request.param)
    except KernelUnavailable as error:
        if request.param == KERNELS[0]:
            raise
        pytest.skip(str(error))


@pytest.fixture
def config_of(make_config: ConfigMaker, kernel: tuple[str, GuestImage]) -> ConfigMaker:
    name, image = kernel

    def make(**changes: object) -> object:
        return make_config(**{"kernel": image.kernel, "initramfs": image.initramfs} | changes)

    assert name == "newest" or not image.without_probe, image.without_probe
    return make  # type: ignore[return-value]


@pytest.mark.asyncio
@pytest.mark.parametrize("smp", [1, 4])
async def test_a_stock_kernel_takes_clock_timers_and_bus_from_us_and_has_no_complaint(
    config_of: ConfigMaker, kernel: tuple[str, GuestImage], make_vm: MadeVm, smp: int
) -> None:
    vm = await make_vm(config_of(smp=smp, append="loglevel=7 vmbus.report"))
    report = await reported(vm)
    assert report.clocksource == "hyperv_clocksource_tsc_page"
    # Direct-mode timers come at a vector of their own, and the local APIC's timer is not used.
    assert_timer("HVS", report, smp)
    assert report.after["LOC"] == [0] * smp
    match = await vm.console.wait_for(r"Vmbus version:([0-9.]+)")
    # 7.3 asks for 6.0 first, with its features; 6.1 and 6.12 know nothing newer than 5.3.
    assert match[1] == ("6.0" if kernel[0] == "newest" else "5.3")
    assert serious(report.complaints) == []


@pytest.mark.asyncio
async def test_timer_messages_and_the_plain_apic_serve_a_stock_kernel_as_well(
    config_of: ConfigMaker,
    kernel: tuple[str, GuestImage],
    make_vm: MadeVm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = [
        flag for flag in qemu_module.HYPERV_FLAGS if flag not in ("hv-avic", "hv-stimer-direct")
    ]
    assert len(flags) == len(qemu_module.HYPERV_FLAGS) - 2
    monkeypatch.setattr(qemu_module, "HYPERV_FLAGS", tuple(flags))
    vm = await make_vm(config_of(smp=2, append="loglevel=7 vmbus.report"))
    report = await reported(vm)
    assert report.clocksource == "hyperv_clocksource_tsc_page"
    complaints = serious(report.complaints)
    if kernel[0] == "newest" and any(NO_TIMER_MESSAGES in line for line in complaints):
        # Linux has given up timer messages (7.3 has no hv_stimer_legacy_init() any more).
        assert_timer("LOC", report, 2)
        assert len(complaints) == 1, complaints
        return
    # A timer's message raises the interrupt of all VMBus messages. Until hv_vmbus has set up its
    # SINT, the local APIC's timer serves.
    assert_timer("HYP", report, 2)
    assert "HVS" not in report.after
    assert report.after["LOC"] == report.before["LOC"]
    assert complaints == []


@pytest.mark.asyncio
async def test_the_main_job_is_done_by_each_kernel(
    config_of: ConfigMaker, kernel: tuple[str, GuestImage], qemu: Path, tmp_path: Path
) -> None:
    if reason := kernel[1].without_probe:
        pytest.skip(reason)
    report = await run_demo(
        config_of(smp=2), qemu=qemu, folder=tmp_path, rounds=1, say=lambda text: None
    )
    assert report.good, report
    assert kernel[1].release in report.guest


def assert_timer(name: str, report: Report, smp: int) -> None:
    """Each CPU has slept between the two readings, and only its timer can have woken it."""
    assert len(report.before[name]) == len(report.after[name]) == smp
    for before, after in zip(report.before[name], report.after[name], strict=True):
        assert after > before > 0, report


def test_a_complaint_about_hyper_v_is_not_harmless() -> None:
    lines = [
        "<4>[    0.68] mtrr: your CPUs had inconsistent fixed MTRR settings",
        "<4>[    1.33] WARNING: arch/x86/kernel/cpu/mshyperv.c:115 at hv_para_get_synic_register",
        "<3>[    1.00] hv_vmbus: Unable to connect to host",
    ]
    assert serious(lines) == lines[1:]
