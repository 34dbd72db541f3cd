# SPDX-License-Identifier: MIT
"""The steps of building QEMU: unpack, patch, get Meson, configure, compile.

Each takes the folders it works in and the file that the output of its commands is added to.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .command import BuildError, run
from .patches import Patch, Source

# To be changed when the same input is to give a different result.
RECIPE = "1"

# Programs only: no tests, no documentation, none of the firmware (Debian's tarball has none).
# These are Ninja's targets.
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "storage-daemon/qemu-storage-daemon")
OPTIONS = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-tools",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-slirp",
    "--enable-fdt=system",
    "--enable-pixman",
    "--enable-vhost-user",
    "--enable-hv-balloon",
    "--enable-trace-backends=log",
    "--disable-docs",
    "--disable-guest-agent",
    "--disable-download",
    "--disable-install-blobs",
    "--disable-debug-info",
    "--disable-werror",
    # Where Debian's qemu-system-data, seabios and ipxe-qemu put the firmware.
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu",
)

# QEMU's build needs a newer Meson than Debian 12 has.
WHEELS = """\
meson==1.5.0 --hash=sha256:52b34f4903b882df52ad0d533146d4b992c018ea77399f825579737672ae7b20
pycotap==1.3.1 --hash=sha256:1c3a25b3ff89e48f4e00f1f71dbbc1642b4f65c65d416524d07e73492fff25ea
"""

# Debian package: how to tell that it is there.
COMMANDS = {
    "gcc": ("cc",),
    "make": ("make",),
    "ninja-build": ("ninja",),
    "patch": ("patch",),
    "pkg-config": ("pkg-config",),
    "xz-utils": ("xz",),
    "flex": ("flex",),
    "bison": ("bison",),
    "binutils": ("strip",),
}
HEADERS = {
    "libc6-dev": ("stdlib.h", None),
    "libglib2.0-dev": ("glib.h", "glib-2.0"),
    "libpixman-1-dev": ("pixman.h", "pixman-1"),
    "libslirp-dev": ("slirp/libslirp.h", "slirp"),
    "libfdt-dev": ("libfdt.h", None),
    "zlib1g-dev": ("zlib.h", None),
}


def key(source: Source, patches: Sequence[Patch]) -> str:
    """Name what the given source and patches result in."""
    digest = hashlib.sha256()
    for part in (RECIPE, source.sha256, WHEELS, *OPTIONS, *PROGRAMS):
        digest.update(part.encode() + b"\0")
    for patch in patches:
        digest.update(f"{patch.name} {len(patch.content)}\0".encode())
        digest.update(patch.content)
    return digest.hexdigest()[:32]


def check_tools() -> None:
    """Raise BuildError with the names of the Debian packages that are missing."""
    missing = [
        package for package, commands in COMMANDS.items() if not all(map(shutil.which, commands))
    ]
    probe = subprocess.run(
        [sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    if probe.returncode != 0:
        missing.append("python3-venv")
    if shutil.which("cc") and shutil.which("pkg-config"):
        for package, (header, module) in HEADERS.items():
            flags = b""
            if module:
                found = subprocess.run(
                    ["pkg-config", "--cflags", module], capture_output=True, check=False
                )
                if found.returncode != 0:
                    missing.append(package)
                    continue
                flags = found.stdout
            compiled = subprocess.run(
                ["cc", "-E", "-x", "c", *flags.decode().split(), "-"],
                input=f"#include <{header}>\n".encode(),
                capture_output=True,
                check=False,
            )
            if compiled.returncode != 0:
                missing.append(package)
    else:
        missing += HEADERS
    if missing:
        raise BuildError(f"packages are missing; as root run: apt-get install {' '.join(missing)}")


def unpack(tarball: Path, tree: Path, log: Path) -> None:
    """Unpack QEMU's source into a new folder."""
    tree.mkdir(parents=True)
    run(
        "source: unpacking",
        ["tar", "-xf", tarball, "--strip-components=1", "-C", tree],
        tree,
        log=log,
    )


# Where the lines around a change differ, somebody has to look at it.
PATCH = ("patch", "-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch")


def apply(patch: Patch, version: str, tree: Path, log: Path) -> None:
    """Apply a patch to QEMU's source; raise BuildError if a line of its context differs."""
    file = tree.parent / "patch"
    file.write_bytes(patch.content)
    try:
        run(
            f"patch {patch.name}",
            [*PATCH, "-i", file],
            tree,
            show=False,
            log=log,
        )
    except BuildError:
        raise BuildError(f"{patch.name} does not apply to QEMU {version}") from None


def install_meson(venv: Path, log: Path) -> None:
    """Make a Python environment that has Meson."""
    run(
        "build tools: creating an environment",
        [sys.executable, "-m", "venv", venv],
        venv.parent,
        log=log,
    )
    wheels = venv / "wheels.txt"
    wheels.write_text(WHEELS)
    run(
        "build tools: installing Meson",
        [
            *(venv / "bin" / "python3", "-m", "pip", "install", "--disable-pip-version-check"),
            *("--no-input", "--retries", "2", "--timeout", "60", "--only-binary", ":all:"),
            *("--require-hashes", "--no-deps", "-r", wheels),
        ],
        venv.parent,
        log=log,
    )


def configure(tree: Path, out: Path, venv: Path, log: Path) -> None:
    """Configure a build in a new folder."""
    out.mkdir(parents=True)
    run(
        "QEMU: configuring",
        [tree / "configure", f"--python={venv / 'bin' / 'python3'}", *OPTIONS],
        out,
        log=log,
    )


def compile_programs(out: Path, jobs: int, log: Path, what: str = "QEMU: compiling") -> None:
    """Compile what is not up to date; as many compilers as Ninja likes if ``jobs`` is 0."""
    run(what, ["ninja", *([f"-j{jobs}"] if jobs else []), *PROGRAMS], out, log=log)
