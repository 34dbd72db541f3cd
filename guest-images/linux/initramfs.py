# SPDX-License-Identifier: MIT
"""The initramfs of the test guest: which kernel modules go in, and the archive itself."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from debian import BuildError


def module_depends(module: bytes) -> list[str]:
    """Return the names of the modules that a module needs, from its .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    names = match.group(1).decode().split(",") if match else []
    return [name.replace("-", "_") for name in names if name]


def module_closure(
    modules: dict[str, bytes], wanted: Sequence[str], builtin: frozenset[str] = frozenset()
) -> dict[str, bytes]:
    """Return the wanted modules and all that they need, what is needed first.

    Those that are part of the kernel are left out; 7.3 has hv_vmbus built in.
    """
    chosen: dict[str, bytes] = {}

    def choose(name: str) -> None:
        if name in chosen or name in builtin:
            return
        if name not in modules:
            raise BuildError(f"the kernel package has no module {name}")
        for needed in module_depends(modules[name]):
            choose(needed)
        chosen[name] = modules[name]

    for name in wanted:
        choose(name)
    return chosen


class Cpio:
    """An initramfs archive in the "newc" format (Linux: early-userspace/buffer-format.rst).

    Members are written in the order given, owned by root, with one fixed time; so the bytes
    depend on names and contents only. Not compressed: under emulation, unpacking would cost
    more than loading.
    """

    def __init__(self, mtime: int) -> None:
        self.mtime = mtime
        self.parts: list[bytes] = []
        self.members = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add a member; ``mode`` includes the file type, ``device`` is (major, minor)."""
        self.members += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        where = (0, 0, *device)
        fields = (self.members, mode, 0, 0, links, self.mtime, len(data), *where, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.parts += [self._pad(header + encoded), self._pad(data)]

    def finish(self) -> bytes:
        """Return the whole archive."""
        self.mtime = 0
        self.members = -1
        self.add("TRAILER!!!", 0)
        archive = b"".join(self.parts)
        return archive + bytes(-len(archive) % 512)

    @staticmethod
    def _pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)


def initramfs(
    release: str,
    epoch: int,
    busybox: bytes,
    applets: Sequence[str],
    programs: dict[str, bytes],
    modules: dict[str, bytes],
) -> tuple[bytes, list[dict[str, str | int]]]:
    """Return the initramfs and a list of the files in it; ``programs`` by path, /init too."""
    folder = f"lib/modules/{release}"
    files: dict[str, tuple[int, bytes]] = {
        "bin/busybox": (0o755, busybox),
    }
    for name, data in programs.items():
        files[name] = (0o755, data)
    for name, data in modules.items():
        files[f"{folder}/{name}.ko"] = (0o644, data)
    lines = [
        f"{name}.ko:" + "".join(f" {needed}.ko" for needed in reversed(all_depends(modules, name)))
        for name in sorted(modules)
    ]
    # busybox's modprobe reads this text form; it has no depmod to run.
    files[f"{folder}/modules.dep"] = (0o644, ("\n".join(lines) + "\n").encode())

    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {
        # The kernel opens it before /init runs, when nothing is mounted yet.
        "dev/console": (stat.S_IFCHR | 0o600, b"", (5, 1)),
    }
    for name, (mode, data) in files.items():
        entries[name] = (stat.S_IFREG | mode, data, (0, 0))
    for applet in applets:
        entries.setdefault(f"bin/{applet}", (stat.S_IFLNK | 0o777, b"busybox", (0, 0)))
    for name in [*entries, "proc/x", "root/x", "sys/x", "tmp/x"]:
        for parent in Path(name).parents:
            if parent != Path():
                entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", (0, 0)))

    archive = Cpio(epoch)
    for name in sorted(entries):
        archive.add(name, *entries[name])
    listing: list[dict[str, str | int]] = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, (_, data) in sorted(files.items())
    ]
    return archive.finish(), listing


def all_depends(modules: dict[str, bytes], name: str) -> list[str]:
    """Return every module that one needs, in the order in which they must be loaded."""
    return [needed for needed in module_closure(modules, [name]) if needed != name]
