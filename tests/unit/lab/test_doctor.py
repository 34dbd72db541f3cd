# SPDX-License-Identifier: MIT
"""``vmbus doctor`` on machines that lack something: each lack is named, with what to do."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.console import Console

from emulator.cli import diagnosis as shown
from emulator.lab import doctor
from emulator.lab.doctor import Check, Diagnosis, Host, State, diagnose
from emulator.machine import kvm, qemu
from tests.model.kvm import ALL_LEAVES, FakeKvm

VERSION = "QEMU emulator version 10.0.13"

OpenKvm = Callable[[], AbstractContextManager[kvm.KvmInterface]]


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    """Return a maker of machines that have everything, but for what the test takes away."""
    firmware = tmp_path / "firmware"
    firmware.mkdir()
    for name in qemu.FIRMWARE:
        (firmware / name).touch()
    root = tmp_path / "checkout"
    (root / "qemu-patches").mkdir(parents=True)
    (root / "qemu-patches" / "series").write_text("0001.patch\n")
    (root / "qemu-patches" / "0001.patch").write_text("one")
    script(root / "guest-images/linux/build", f"echo {tmp_path}/image")
    program = script(
        tmp_path / "qemu/bin/qemu-system-x86_64",
        f"""case "$*" in
        --version) echo '{VERSION}' ;;
        *device*) echo 'name "vmbus-user", bus System' ;;
        *accel*) echo tcg kvm ;;
        esac""",
    )
    digest = hashlib.sha256(b"one").hexdigest()
    (tmp_path / "qemu" / "BUILD").write_text(f"patch 0001.patch sha256 {digest}\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 4000000 kB\nHugePages_Free: 4\nHugepagesize: 2048 kB\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("VMBUS_QEMU", str(program))
    monkeypatch.delenv("VMBUS_GUEST", raising=False)

    def make(open_kvm: OpenKvm = lambda: FakeKvm(leaves=ALL_LEAVES)) -> Host:
        return Host(open_kvm, root, (str(firmware),), cache, meminfo)

    return make


def named(diagnosis: Diagnosis, name: str) -> Check:
    (check,) = [check for check in diagnosis.checks if check.name == name]
    return check


def test_a_machine_with_everything_can_run_everything(make_host: Callable[..., Host]) -> None:
    found = diagnose(make_host())
    assert (found.tcg, found.kvm, found.demo) == ("", "", "")
    assert [check for check in found.checks if check.state is State.MISSING] == []
    assert {check.name for check in found.checks} > {flag for flag in kvm.FLAG_BITS}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_a_machine_without_kvm_runs_tcg_and_kvm_is_a_note(
    make_host: Callable[..., Host], number: int
) -> None:
    def refuse() -> FakeKvm:
        raise OSError(number, os.strerror(number), kvm.DEVICE)

    found = diagnose(make_host(refuse))
    assert found.tcg == ""
    assert "/dev/kvm" in found.kvm
    assert named(found, "device").state is State.NOTE
    assert named(found, "device").fix


def test_each_missing_capability_and_flag_has_its_line(make_host: Callable[..., Host]) -> None:
    leaves = dict(ALL_LEAVES)
    leaves[0x40000003] = (0xFFFFFFFF & ~(1 << 2), 0, 0, 0xFFFFFFFF)
    found = diagnose(make_host(lambda: FakeKvm(("HYPERV_SYNIC2", "HYPERV_EVENTFD"), leaves)))
    assert found.tcg == ""
    assert "KVM_CAP_HYPERV_SYNIC2" in found.kvm
    assert named(found, "KVM_CAP_HYPERV_SYNIC2").state is State.MISSING
    assert named(found, "KVM_CAP_HYPERV_EVENTFD").state is State.NOTE
    assert named(found, "hv-synic").state is State.MISSING
    assert named(found, "hv-stimer").state is State.OK


def test_a_kvm_that_breaks_down_is_told(make_host: Callable[..., Host]) -> None:
    class Broken(FakeKvm):
        def check(self, number: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

    found = diagnose(make_host(Broken))
    assert "does not answer" in found.kvm
    assert found.tcg == ""


def test_a_qemu_of_other_patches_is_stale(make_host: Callable[..., Host]) -> None:
    host = make_host()
    (host.root / "qemu-patches" / "0001.patch").write_text("two")
    check = named(diagnose(host), "patches")
    assert check.state is State.NOTE
    assert check.found.startswith("stale: 1 of 1")
    assert "scripts/build-qemu" in check.fix


def test_a_qemu_without_our_device_cannot_run_anything(
    make_host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host()
    monkeypatch.setenv("VMBUS_QEMU", str(script(tmp_path / "other", f"echo '{VERSION}'")))
    found = diagnose(host)
    assert "vmbus-user" in found.tcg
    assert found.kvm == found.tcg
    assert named(found, "patched QEMU").fix == "scripts/build-qemu"


def test_firmware_that_is_missing_is_named_with_its_package(make_host: Callable[..., Host]) -> None:
    host = make_host()
    (Path(host.firmware[0]) / "bios-256k.bin").unlink()
    found = diagnose(host)
    assert "bios-256k.bin" in found.tcg
    assert named(found, "firmware").fix == "apt-get install seabios"


def test_without_the_test_guest_machines_run_and_the_demo_does_not(
    make_host: Callable[..., Host],
) -> None:
    host = make_host()
    script(
        host.root / "guest-images/linux/build",
        "echo 'guest-linux: error: the image has not been built' >&2; exit 1",
    )
    found = diagnose(host)
    assert found.tcg == ""
    assert found.demo == "kernel 6.1: the image has not been built"
    # Only tests want the others.
    assert named(found, "kernel 6.12").state is State.NOTE


def test_little_memory_and_no_huge_pages_are_notes(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.meminfo.write_text("MemAvailable: 1000 kB\n")
    found = diagnose(host)
    assert named(found, "memory").state is State.NOTE
    assert named(found, "huge pages").state is State.NOTE
    assert found.tcg == ""


def test_a_host_without_memfd_cannot_run_anything(
    make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    host = make_host()
    monkeypatch.setattr(doctor.os, "memfd_create", refuse)  # type: ignore[attr-defined]
    assert diagnose(host).tcg.startswith("memfd")


def test_a_package_that_is_too_old_is_named(
    make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor.importlib.metadata,  # type: ignore[attr-defined]
        "requires",
        lambda name: ["rich>=9999", "nothing-like-this>=1", 'x>=1; extra == "dev"'],
    )
    found = diagnose(make_host())
    assert "not 9999 or later" in found.tcg
    assert "no nothing-like-this" in named(found, "packages").found


def test_a_pipe_gets_one_line_for_each_check_and_a_terminal_a_table(
    make_host: Callable[..., Host],
) -> None:
    found = diagnose(make_host(lambda: FakeKvm(("HYPERV",))))
    plain, table = io.StringIO(), io.StringIO()
    shown.show(found, Console(file=plain, highlight=False))
    lines = plain.getvalue().splitlines()
    assert len(lines) == len(found.checks) + 1
    assert all(line.split()[0] in set(State) for line in lines[:-1])
    assert lines[-1].startswith("this machine can run: TCG yes; KVM no, because")
    shown.show(found, Console(file=table, force_terminal=True, width=160))
    for check in found.checks:
        assert check.name in table.getvalue()


def test_json_has_the_same(make_host: Callable[..., Host]) -> None:
    found = diagnose(make_host(lambda: FakeKvm(("HYPERV_SYNIC2",))))
    data = json.loads(shown.as_json(found))
    assert data["can_run"]["tcg"] == {"yes": True, "because": ""}
    assert data["can_run"]["kvm"]["yes"] is False
    assert [check["name"] for check in data["checks"]] == [check.name for check in found.checks]
