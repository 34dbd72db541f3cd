# SPDX-License-Identifier: MIT
"""What ``vmbus ps`` and ``vmbus inspect`` print: whole, and nothing of a guest's making acts."""

from __future__ import annotations

import msgspec
import pytest

from emulator.cli.inspect import show_channel, show_host
from emulator.cli.ps import _show
from emulator.cli.tables import duration, plain, power_us, size
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.inspect import inspect
from emulator.machine.report import Gpadl, Host, Latency, Range, Ring


@pytest.fixture
def report() -> Host:
    return inspect(VmbusHost(HostConfig("[red]vm[/red]", (DeviceConfig("probe", "probe"),))))


def test_a_name_or_text_is_no_markup_and_no_control_sequence(
    report: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    show_host(msgspec.structs.replace(report, last_guest_errors=["\x1b[2J[bold]bad\n[/bold]"]))
    _show([{"name": "[red]a", "pid": 1, "error": "\x1b[/red]"}])
    out = capsys.readouterr().out
    assert "[red]vm[/red]: pid" in out
    assert "guest: ?[2J[bold]bad?[/bold]" in out
    assert "[red]a" in out
    assert "\x1b" not in out


def test_a_channel_is_shown_with_corrupt_rings_and_many_gpadls(
    report: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    gpadls = [
        Gpadl(number, "accepted", 8, 72, 72, 1, [Range(number, 8, 0, 32768)])
        for number in range(100, 200)
    ]
    channel = msgspec.structs.replace(
        report.channels[0],
        state="open",
        faults=["the ring is corrupt"],
        guest_to_host=Ring(4096, 0xFFFFFFFF, 1, None, 7, 9, 1),
        gpadls=gpadls,
        doorbell_to_callback=Latency([0, 3, *[0] * 21, 1], 12.5),
    )
    show_channel(channel)
    out = capsys.readouterr().out
    assert "open, queue off, FAULT" in out
    assert "0xffffffff" in out
    assert "corrupt" in out
    assert all(f"{gpadl.id:#x}" in out for gpadl in gpadls)
    assert "4 timed, mean 3.1 us" in out
    # The last bucket has no bound.
    assert "more        1" in out


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (size(1023), "1023 B"),
        (size(5 << 20), "5 MiB"),
        (size(2 << 40), "2048 GiB"),
        (duration(59.9), "59 s"),
        (duration(61), "1 min 01 s"),
        (duration(7260), "2 h 01 min"),
        (power_us(9), "512 us"),
        (power_us(10), "1.02 ms"),
        (power_us(22), "4.19 s"),
        (plain("a\tb"), "a?b"),
    ],
)
def test_numbers_as_a_person_reads_them(shown: str, text: str) -> None:
    assert shown == text
