# SPDX-License-Identifier: MIT
"""A packaged kernel taken apart, and what is compiled for it: the probe module and its program."""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from debian import LIBRARIES, BuildError, package_files, read_member, run

HERE = Path(__file__).resolve().parent
MODULE_SOURCES = (
    "Kbuild",
    *sorted(path.name for path in (HERE / "probe").glob("vmbus_probe*.[ch]")),
)
PROGRAM_SOURCES = tuple(
    sorted(
        path.name
        for path in (HERE / "probe").glob("*.c")
        if not path.name.startswith("vmbus_probe")
    )
)
# Debian 12's compiler, which has built its kernel and the backports to it.
COMPILER = "gcc-12"
# What a kernel that a newer compiler has built may ask of it, and COMPILER cannot. None of these
# options shapes data; without this one, functions are aligned by an older option.
UNKNOWN_TO_COMPILER = ("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",)
PROGRAM_FLAGS = ("-static", "-O2", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-s")


@dataclass
class KernelFiles:
    """What is taken from the packages of a kernel; ``epoch`` is its build time in Unix seconds."""

    image: bytes = b""
    epoch: int = 0
    modules: dict[str, bytes] = field(default_factory=dict)
    builtin: frozenset[str] = frozenset()


def kernel_files(debs: Sequence[Path], release: str) -> KernelFiles:
    """Return the kernel and its modules, by name and not compressed.

    Up to 6.12 one package has them all; later, one the kernel, one the modules, one the lists.
    """
    files = KernelFiles()
    tree = re.compile(rf"\./(?:usr/)?lib/modules/{re.escape(release)}/(.*)")
    for deb in debs:
        with package_files(deb) as archive:
            for member in archive:
                match = tree.fullmatch(member.name)
                inner = match[1] if match else ""
                if not member.isfile():
                    continue
                if member.name == f"./boot/vmlinuz-{release}" or inner == "vmlinuz":
                    files.image, files.epoch = read_member(archive, member), int(member.mtime)
                elif inner == "modules.builtin":
                    lines = read_member(archive, member).decode().split()
                    files.builtin = frozenset(module_name(Path(line)) for line in lines)
                elif inner.startswith("kernel/") and inner.endswith((".ko", ".ko.xz")):
                    data = read_member(archive, member)
                    if inner.endswith(".xz"):
                        data = lzma.decompress(data)
                    files.modules[module_name(Path(inner))] = data
    if not files.image:
        raise BuildError(f"no kernel {release} in {', '.join(map(str, debs))}")
    return files


def module_name(path: Path) -> str:
    """Return the name by which the kernel knows the module in a file."""
    return path.name.partition(".")[0].replace("-", "_")


def prepare_headers(debs: dict[str, Path], root: Path, release: str) -> Path:
    """Unpack the kernel headers into a private tree and return the build folder in it."""
    root.mkdir()
    libraries = ("libelf1", *LIBRARIES)
    for name, deb in debs.items():
        if name.startswith(("linux-headers-", "linux-kbuild-", *libraries)):
            run(["dpkg-deb", "-x", deb, root], f"cannot unpack {name}")
    # The packages' files name each other by their absolute paths in an installed system.
    headers = root / f"usr/src/linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(re.sub(r"(?<=[ =])/usr/src/", f"{root}/usr/src/", makefile.read_text()))
    if "libc6" in debs:
        wrap_tools(root)
    return headers


def wrap_tools(root: Path) -> None:
    """Let the programs of linux-kbuild run with the C library that is in ``root`` with them."""
    folders = [root / f"{prefix}lib/x86_64-linux-gnu" for prefix in ("usr/", "")]
    loader = next(
        (path for folder in folders if (path := folder / "ld-linux-x86-64.so.2").exists()), None
    )
    if loader is None:
        raise BuildError("the package libc6 has no dynamic linker where it is expected")
    for tool in [path for path in root.glob("usr/lib/linux-kbuild-*/**/*") if path.is_file()]:
        with tool.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        program = tool.rename(tool.with_name(f"{tool.name}.program"))
        tool.write_text(
            f"#!/bin/sh\nexec {loader} --library-path {':'.join(map(str, folders))} "
            f'--argv0 "$0" {program} "$@"\n'
        )
        tool.chmod(0o755)


def kernel_compiler(headers: Path) -> str:
    """Return the version of the compiler that has built the kernel, as it calls itself."""
    try:
        text = (headers / ".config").read_text()
    except OSError:
        return ""
    match = re.search(r'^CONFIG_CC_VERSION_TEXT="\S+ (.*)"$', text, re.MULTILINE)
    return match[1] if match else ""


def build_module(headers: Path, root: Path, work: Path, epoch: int) -> bytes:
    """Build the probe module and return it, without symbols that only a debugger needs."""
    work.mkdir()
    for name in MODULE_SOURCES:
        shutil.copy(HERE / "probe" / name, work)
    libraries = [str(root / f"{prefix}lib/x86_64-linux-gnu") for prefix in ("usr/", "")]
    wrapped = any((Path(folder) / "libc.so.6").exists() for folder in libraries)
    run(
        [
            "make",
            "-C",
            headers,
            f"M={work}",
            f"CC={COMPILER}",
            # Debug sections hold the paths of this build, and the build id is taken over them.
            "CONFIG_DEBUG_INFO=",
            "CONFIG_DEBUG_INFO_BTF_MODULES=",
            *(UNKNOWN_TO_COMPILER if "(Debian 12." not in kernel_compiler(headers) else ()),
            f"KCFLAGS=-ffile-prefix-map={work}=probe -ffile-prefix-map={root}=kernel",
            "modules",
        ],
        "the probe module does not build",
        env={
            **reproducible(epoch),
            # Wrapped tools find theirs, and all others need the machine's.
            "LD_LIBRARY_PATH": "" if wrapped else ":".join(libraries),
            "KBUILD_BUILD_USER": "vmbus",
            "KBUILD_BUILD_HOST": "vmbus",
            "KBUILD_BUILD_TIMESTAMP": f"@{epoch}",
        },
    )
    module = work / "vmbus_probe.ko"
    run(["strip", "--strip-debug", module], "cannot strip the probe module")
    return module.read_bytes()


def build_program(work: Path, epoch: int) -> bytes:
    """Build the static program that talks to the probe module, and return it."""
    program = work / "vmbus-probe"
    run(
        [COMPILER, *PROGRAM_FLAGS, "-o", program, *PROGRAM_SOURCES],
        "the probe program does not build",
        cwd=HERE / "probe",
        env=reproducible(epoch),
    )
    return program.read_bytes()


def build_diskload(work: Path, epoch: int) -> bytes:
    """Build the static program that writes to a disk and checks it, and return it."""
    program = work / "vmbus-diskload"
    run(
        [COMPILER, *PROGRAM_FLAGS, "-pthread", "-o", program, "diskload.c"],
        "the disk program does not build",
        cwd=HERE / "disk",
        env=reproducible(epoch),
    )
    return program.read_bytes()


def reproducible(epoch: int) -> dict[str, str]:
    """Return the environment that keeps time and taste of this machine out of a build."""
    return {
        "SOURCE_DATE_EPOCH": str(epoch),
        "TZ": "UTC",
        "MAKEFLAGS": "",
        "CFLAGS": "",
        "KCPPFLAGS": "",
    }
