# SPDX-License-Identifier: MIT
"""Where a machine keeps what outlives a run: its logs, its lock and its named snapshots.

A machine has a folder of its own, ``$XDG_STATE_HOME/vmbus/machines/NAME`` (by default under
``~/.local/state``)::

    lock                 held by the process that runs the machine
    control.sock         where that process takes commands
    logs/                console.log, qemu.log and backend.log of the last run
    snapshots/NAME/      what emulator.machine.snapshot writes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulator.machine.snapshot import MANIFEST, Manifest, SnapshotError, read_manifest

_SOCKET_PATH: Final = 108
"""Bytes of sun_path, with the one that ends it (unix(7))."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StoreError(Exception):
    """A name cannot be used, a folder cannot be made, or the machine runs already."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot as it is listed: what is wrong with it instead of a manifest if it is damaged."""

    name: str
    manifest: Manifest | None
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes of its files, as the manifest has them."""
        if self.manifest is None:
            return 0
        return sum(entry.size for entry in self.manifest.files.values())


def check_name(what: str, name: str) -> str:
    """Return a name that can be that of a folder; raises :class:`StoreError` for any other."""
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{what} {name!r}: a name has 1 to 64 letters, digits, '.', '_' or '-', "
            "and begins with a letter or a digit"
        )
    return name


class MachineStore:
    """The folder of one machine."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        """Name the folder; nothing is made. ``root`` is by default the user's state folder."""
        self.name = check_name("machine", name)
        self.folder = (root or state_root()) / "machines" / name

    @property
    def logs(self) -> Path:
        """The folder of the last run's logs."""
        return self.folder / "logs"

    @property
    def control(self) -> Path:
        """The socket of the process that runs the machine; raises :class:`StoreError`."""
        path = self.folder / "control.sock"
        if len(os.fsencode(path)) >= _SOCKET_PATH:
            raise StoreError(
                f"{path} is too long for a socket; give the machine a shorter name, "
                "or set XDG_STATE_HOME to a shorter path"
            )
        return path

    def snapshot(self, name: str) -> Path:
        """Return the folder of a snapshot; raises :class:`StoreError` for what is no name."""
        return self.folder / "snapshots" / check_name("snapshot", name)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the machine while in the context; raises :class:`StoreError` if another does.

        The kernel lets go of the lock however this process ends (flock(2)).
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"machine {self.name} runs already; give another one another name"
                ) from error
            for log in self.logs.glob("*.log"):
                log.unlink()
            yield
        finally:
            os.close(lock)

    def snapshots(self) -> list[Kept]:
        """Return the snapshots, oldest first, the damaged ones too (those at the end)."""
        found: list[Kept] = []
        for path in sorted((self.folder / "snapshots").glob("[!.]*")):
            try:
                found.append(Kept(path.name, read_manifest(path)))
            except SnapshotError as error:
                found.append(Kept(path.name, None, str(error)))
        return sorted(
            found, key=lambda kept: (kept.manifest is None, kept.manifest and kept.manifest.created)
        )

    def remove(self, name: str) -> None:
        """Remove a snapshot; raises :class:`StoreError`."""
        path = self.snapshot(name)
        if not path.is_dir():
            known = ", ".join(kept.name for kept in self.snapshots()) or "none"
            raise StoreError(f"machine {self.name} has no snapshot {name!r}; there is: {known}")
        try:
            # Without its manifest it is no snapshot: one that is removed in part is not restored.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error


def state_root() -> Path:
    """Return ``vmbus`` in the user's state folder (XDG Base Directory Specification)."""
    named = os.environ.get("XDG_STATE_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".local" / "state"
    return base / "vmbus"


def machines() -> list[str]:
    """Return the names of the machines that have a folder."""
    return sorted(path.name for path in (state_root() / "machines").glob("*") if path.is_dir())
