# SPDX-License-Identifier: MIT
"""What this machine lacks to run our virtual machines: ``vmbus doctor``.

Every check looks at the thing itself (a device is opened, a program is run, a descriptor is made)
and changes nothing: nothing is built, fetched or installed. A check that fails says what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from emulator.machine import kvm
from emulator.machine.built import native_memory
from emulator.machine.qemu import (
    FIRMWARE,
    FIRMWARE_FOLDERS,
    HYPERV_FLAGS,
    QemuError,
    check_qemu,
    find_qemu,
)

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "vmbus-emulator"
PYTHON: Final = (3, 11)
MIB: Final = 1 << 20
FILES_WANTED: Final = 1024
"""Open files: a backend has one or two for each channel, QEMU a few dozen."""
SPACE_WANTED: Final = 1024 * MIB
"""A snapshot has the guest's RAM in it; the demo's has 512 MiB at most."""
BUILD_SPACE: Final = 3000 * MIB
"""What scripts/build-qemu wants free."""
RAM_WANTED: Final = 700 * MIB
"""The demo's guest, QEMU and the backend."""


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    """Not as it could be, and nothing of ours needs it."""
    MISSING = "missing"


class Subject(StrEnum):
    """What a check is about, and so what cannot be done if it fails."""

    BASE = "this package"
    QEMU = "QEMU"
    GUEST = "test guest"
    HOST = "host"
    KVM = "KVM"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; ``fix`` says what to do and is empty if nothing is to be done."""

    subject: Subject
    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and what follows: why something cannot run here, or an empty text."""

    checks: tuple[Check, ...]
    tcg: str
    kvm: str
    demo: str


@dataclass(frozen=True, slots=True)
class Host:
    """Where the doctor looks; a test puts other things in the places of the real ones."""

    open_kvm: Callable[[], AbstractContextManager[kvm.KvmInterface]] = kvm.Kvm
    root: Path = ROOT
    firmware: tuple[str, ...] = FIRMWARE_FOLDERS
    cache: Path = field(
        default_factory=lambda: (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmbus"
        )
    )
    meminfo: Path = Path("/proc/meminfo")


def diagnose(host: Host | None = None) -> Diagnosis:
    """Look at everything. Raises nothing that a broken machine could cause."""
    host = host or Host()
    checks = [
        *_base(),
        *_qemu(host),
        *_guest(host),
        *_host(host),
    ]
    kvm_checks, lack = _kvm(host)
    tcg = _first_missing(checks, (Subject.BASE, Subject.QEMU, Subject.HOST))
    return Diagnosis(
        checks=(*checks, *kvm_checks),
        tcg=tcg,
        kvm=tcg or lack,
        demo=tcg or _first_missing(checks, (Subject.GUEST,)),
    )


def _first_missing(checks: list[Check], subjects: tuple[Subject, ...]) -> str:
    bad = [check for check in checks if check.state is State.MISSING and check.subject in subjects]
    return f"{bad[0].name}: {bad[0].found}" if bad else ""


# This package.


def _base() -> Iterator[Check]:
    version = sys.version_info[:3]
    shown = ".".join(map(str, version))
    enough = version >= PYTHON
    yield Check(
        Subject.BASE,
        "Python",
        State.OK if enough else State.MISSING,
        shown,
        "" if enough else f"use Python {'.'.join(map(str, PYTHON))} or later",
    )
    yield from _packages()
    native = native_memory()
    yield Check(
        Subject.BASE,
        "atomic memory access",
        State.OK if native else State.NOTE,
        "C extension" if native else "the pure Python reference, which is slow",
        "" if native else "run scripts/setup; unset VMBUS_PURE_PYTHON",
    )


def _packages() -> Iterator[Check]:
    try:
        wanted = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            Subject.BASE, "packages", State.MISSING, f"{PACKAGE} is not installed", "scripts/setup"
        )
        return
    lacking = []
    found = []
    for requirement in wanted:
        match = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?", requirement)
        if match is None:
            # Extras are for development.
            continue
        name, least = match[1], match[2] or "0"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(f"no {name}")
            continue
        found.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            lacking.append(f"{name} is {version}, not {least} or later")
    yield Check(
        Subject.BASE,
        "packages",
        State.MISSING if lacking else State.OK,
        ", ".join(lacking or found),
        "scripts/setup" if lacking else "",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


# QEMU.


def _qemu(host: Host) -> Iterator[Check]:
    try:
        program = find_qemu()
    except QemuError as error:
        old = sorted(host.cache.glob("qemu/*/bin/qemu-system-x86_64"))
        stale = f"; {len(old)} built from other patches or versions" if old else ""
        yield Check(
            Subject.QEMU, "patched QEMU", State.MISSING, f"{error}{stale}", "scripts/build-qemu"
        )
        yield from _firmware(host)
        return
    try:
        version = check_qemu(program)
    except QemuError as error:
        yield Check(Subject.QEMU, "patched QEMU", State.MISSING, str(error), "scripts/build-qemu")
    else:
        yield Check(Subject.QEMU, "patched QEMU", State.OK, f"{version}, {_short(program)}")
        yield Check(Subject.QEMU, "vmbus-user device", State.OK, "in this QEMU")
        yield _patches(host, program)
        yield _accelerators(program)
    yield from _firmware(host)


def _short(path: Path) -> str:
    """Write the home folder as people do."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)


def _patches(host: Host, program: Path) -> Check:
    """Compare what QEMU was built from (BUILD, beside its bin) with the patches of the checkout."""
    name = "patches"
    record = program.resolve().parents[1] / "BUILD"
    series = host.root / "qemu-patches" / "series"
    try:
        built = dict(re.findall(r"^patch (\S+) sha256 (\S+)$", record.read_text(), re.MULTILINE))
    except OSError:
        return Check(
            Subject.QEMU,
            name,
            State.NOTE,
            "no record of what this QEMU was built from",
            "unset VMBUS_QEMU to use that of scripts/build-qemu",
        )
    try:
        current = _series(series)
    except OSError:
        return Check(
            Subject.QEMU, name, State.NOTE, f"{len(built)} in QEMU; no checkout to compare"
        )
    if built == current:
        return Check(Subject.QEMU, name, State.OK, f"all {len(built)} of this checkout")
    differing = {
        patch for patch in built.keys() | current.keys() if built.get(patch) != current.get(patch)
    }
    return Check(
        Subject.QEMU,
        name,
        State.NOTE,
        f"stale: {len(differing)} of {len(current)} patches differ from the checkout's",
        "scripts/build-qemu, and unset VMBUS_QEMU",
    )


def _series(series: Path) -> dict[str, str]:
    import hashlib

    names = [line.strip() for line in series.read_text().splitlines()]
    return {
        name: hashlib.sha256((series.parent / name).read_bytes()).hexdigest()
        for name in names
        if name and not name.startswith("#")
    }


def _accelerators(program: Path) -> Check:
    shown = subprocess.run(
        [program, "-accel", "help"], capture_output=True, text=True, check=False
    ).stdout.split()
    found = [name for name in ("tcg", "kvm") if name in shown]
    if "tcg" in found:
        return Check(Subject.QEMU, "accelerators", State.OK, ", ".join(found))
    return Check(
        Subject.QEMU, "accelerators", State.MISSING, "no TCG in this QEMU", "scripts/build-qemu"
    )


def _firmware(host: Host) -> Iterator[Check]:
    lacking = {
        name: package
        for name, package in FIRMWARE.items()
        if not any((Path(folder) / name).is_file() for folder in host.firmware)
    }
    if lacking:
        packages = " ".join(sorted(set(lacking.values())))
        yield Check(
            Subject.QEMU,
            "firmware",
            State.MISSING,
            f"no {', '.join(lacking)} in {' or '.join(host.firmware)}",
            f"apt-get install {packages}",
        )
    else:
        yield Check(Subject.QEMU, "firmware", State.OK, ", ".join(FIRMWARE))


# The test guest.


def _guest(host: Host) -> Iterator[Check]:
    fix = "guest-images/linux/build"
    if named := os.environ.get("VMBUS_GUEST"):
        folder, name = Path(named), "kernel of VMBUS_GUEST"
        whole = all((folder / part).is_file() for part in ("vmlinuz", "initramfs.img"))
        yield Check(
            Subject.GUEST,
            name,
            State.OK if whole else State.MISSING,
            str(folder) if whole else f"{folder} holds no guest image",
            "" if whole else f"unset VMBUS_GUEST; {fix}",
        )
        return
    builder = host.root / fix
    for kernel in ("6.1", "6.12", "newest"):
        default = kernel == "6.1"
        try:
            done = subprocess.run(
                [builder, "--kernel", kernel, "--find"], capture_output=True, text=True, check=False
            )
        except OSError as error:
            yield Check(
                Subject.GUEST,
                "image",
                State.MISSING,
                f"{builder}: {error.strerror}",
                "use a checkout, or set VMBUS_GUEST",
            )
            return
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        found = said[-1].removeprefix("guest-linux: error: ") if said else "no answer"
        if done.returncode == 0:
            yield Check(Subject.GUEST, f"kernel {kernel}", State.OK, found)
        elif default:
            yield Check(Subject.GUEST, f"kernel {kernel}", State.MISSING, found, fix)
        else:
            # Only a test asks for these.
            yield Check(
                Subject.GUEST, f"kernel {kernel}", State.NOTE, found, f"{fix} --kernel {kernel}"
            )


# The host.


def _host(host: Host) -> Iterator[Check]:
    yield _made("memfd", lambda: os.memfd_create("vmbus-doctor"), "guest RAM is a memfd")
    yield _made("eventfd", lambda: os.eventfd(0), "doorbells and interrupts are eventfds")
    yield _open_files()
    yield _free_memory(host)
    yield _hugepages(host)
    yield from _space(host)


def _made(name: str, make: Callable[[], int], purpose: str) -> Check:
    try:
        os.close(make())
    except OSError as error:
        return Check(
            Subject.HOST,
            name,
            State.MISSING,
            f"{error.strerror}; {purpose}",
            "allow it (seccomp profile of the container?)",
        )
    return Check(Subject.HOST, name, State.OK, purpose)


def _open_files() -> Check:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= FILES_WANTED:
        return Check(Subject.HOST, "open files", State.OK, f"limit {limit}")
    return Check(
        Subject.HOST,
        "open files",
        State.NOTE,
        f"limit {limit} (at most {most}); many channels need more",
        f"ulimit -n {FILES_WANTED}",
    )


def _meminfo(host: Host) -> dict[str, int]:
    try:
        text = host.meminfo.read_text()
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}


def _free_memory(host: Host) -> Check:
    available = _meminfo(host).get("MemAvailable", 0) << 10
    if available >= RAM_WANTED:
        return Check(Subject.HOST, "memory", State.OK, f"{available // MIB} MiB available")
    return Check(
        Subject.HOST,
        "memory",
        State.NOTE,
        f"{available // MIB} MiB available; the demo wants {RAM_WANTED // MIB}",
        "vmbus demo --memory 128",
    )


def _hugepages(host: Host) -> Check:
    info = _meminfo(host)
    free, size = info.get("HugePages_Free", 0), info.get("Hugepagesize", 0)
    if free:
        return Check(Subject.HOST, "huge pages", State.OK, f"{free} free of {size} KiB")
    return Check(
        Subject.HOST,
        "huge pages",
        State.NOTE,
        "none reserved; only a test of guest RAM uses them",
        "sysctl vm.nr_hugepages=256",
    )


def _space(host: Host) -> Iterator[Check]:
    import tempfile

    yield _free(Subject.HOST, "room for snapshots", Path(tempfile.gettempdir()), SPACE_WANTED)
    name = "cache folder"
    place = host.cache
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield Check(
            Subject.HOST,
            name,
            State.NOTE,
            f"{host.cache} cannot be written: nothing can be built",
            "set XDG_CACHE_HOME to a folder that can",
        )
        return
    yield Check(Subject.HOST, name, State.OK, str(host.cache))
    yield _free(Subject.HOST, "room for builds", place, BUILD_SPACE)


def _free(subject: Subject, name: str, place: Path, wanted: int) -> Check:
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(subject, name, State.NOTE, f"{place}: {error.strerror}")
    if free >= wanted:
        return Check(subject, name, State.OK, f"{free // MIB} MiB free in {place}")
    return Check(
        subject,
        name,
        State.NOTE,
        f"{free // MIB} MiB free in {place}, {wanted // MIB} wanted",
        "make room",
    )


# KVM.


def _kvm(host: Host) -> tuple[list[Check], str]:
    """Return the checks of KVM, and why it cannot be used; a machine without KVM is no fault."""
    try:
        device = host.open_kvm()
    except OSError as error:
        problem = kvm.device_problem(error)
        what, _, fix = problem.partition(": ")
        return [Check(Subject.KVM, "device", State.NOTE, what, fix)], problem
    checks = [Check(Subject.KVM, "device", State.OK, kvm.DEVICE)]
    try:
        with device as opened:
            checks += _kvm_checks(opened)
            return checks, kvm.lacks(opened, HYPERV_FLAGS)
    except (OSError, ValueError) as error:
        problem = f"{kvm.DEVICE} does not answer: {error}"
        return [*checks, Check(Subject.KVM, "answers", State.NOTE, problem)], problem


def _kvm_checks(device: kvm.KvmInterface) -> Iterator[Check]:
    version = device.api_version()
    right = version == kvm.API_VERSION
    yield Check(
        Subject.KVM,
        "interface",
        State.OK if right else State.NOTE,
        f"version {version}",
        "" if right else f"a kernel with version {kvm.API_VERSION}",
    )
    for capability in kvm.CAPABILITIES:
        value = device.check(capability.number)
        name = f"KVM_CAP_{capability.name}"
        if value > 0:
            yield Check(Subject.KVM, name, State.OK, capability.purpose)
        else:
            fix = "a kernel with CONFIG_KVM_HYPERV" if "HYPERV" in name else "a newer kernel"
            yield Check(
                Subject.KVM,
                name,
                State.MISSING if capability.needed else State.NOTE,
                f"not there: {capability.purpose}",
                fix if capability.needed else "",
            )
    leaves = device.hyperv_cpuid()
    if leaves is None:
        yield Check(
            Subject.KVM, "hv-* flags", State.NOTE, "KVM cannot be asked which of them it offers"
        )
        return
    refused = kvm.flags_missing(leaves, HYPERV_FLAGS)
    for flag in HYPERV_FLAGS:
        if flag in kvm.FLAG_BITS:
            lacking = flag in refused
            yield Check(
                Subject.KVM,
                flag,
                State.MISSING if lacking else State.OK,
                "not in the CPUID leaves that KVM offers" if lacking else "offered by KVM",
                "a newer kernel" if lacking else "",
            )
