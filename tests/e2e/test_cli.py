# SPDX-License-Identifier: MIT
"""The command line as a person meets it: one line and a status for a mistake, --dry-run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from emulator.machine.config import Accel
from emulator.machine.qemu import QemuError, choose_accel

pytestmark = pytest.mark.e2e


def test_a_host_without_kvm_is_refused_for_kvm_and_gets_tcg_for_auto(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("emulator.machine.qemu._KVM", "/nowhere/kvm")
    with pytest.raises(QemuError, match="use --accel tcg"):
        choose_accel(Accel.KVM)
    assert choose_accel(Accel.AUTO) is Accel.TCG


def _vmbus(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emulator.cli", *args],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "environment", "words"),
    [
        (["demo"], {"VMBUS_QEMU": "/bin/false"}, "does not run"),
        (["demo"], {"VMBUS_QEMU": "/nowhere/qemu"}, "VMBUS_QEMU"),
        (["demo"], {"VMBUS_GUEST": "/nowhere"}, "guest-images/linux/build"),
        (["demo", "--folder", "/proc/none"], {}, "/proc/none"),
        (["demo", "--smp", "0"], {}, "smp"),
        (["demo", "--max-version", "4.7"], {}, "4.7 is not a VMBus version"),
        (["demo", "--max-version", "0.13"], {}, "older than what Linux speaks"),
    ],
)
def test_a_users_mistake_gives_one_line_and_a_status(
    args: list[str], environment: dict[str, str], words: str
) -> None:
    result = _vmbus(*args, **environment)
    assert result.returncode != 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_dry_run_prints_a_command_line_and_starts_nothing() -> None:
    result = _vmbus("demo", "--dry-run", "--smp", "4", "--accel", "tcg")
    assert result.returncode == 0
    assert "-device vmbus-user,chardev=vmbus" in result.stdout
    assert "-smp 4" in result.stdout


def test_doctor_finds_that_this_machine_runs_tcg() -> None:
    result = _vmbus("doctor")
    assert result.returncode == 0, result.stdout
    assert "this machine can run: TCG yes" in result.stdout
    assert "/dev/kvm" in result.stdout


def test_doctor_ends_with_a_status_where_nothing_can_run() -> None:
    result = _vmbus("doctor", "--json", VMBUS_QEMU="/nowhere/qemu")
    assert result.returncode == 1
    verdict = json.loads(result.stdout)["can_run"]["tcg"]
    assert verdict["yes"] is False
    assert "VMBUS_QEMU" in verdict["because"]
