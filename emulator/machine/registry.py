# SPDX-License-Identifier: MIT
"""Which backends run: a folder for each user, with one file for each VM that is being served.

The folder is ``$XDG_RUNTIME_DIR/vmbus``, or ``vmbus-UID`` in the folder for temporary files where
there is no runtime folder. It belongs to the user and nobody else may enter it; one that is not
like that (anybody can make a folder in /tmp first) is refused. An entry says where the control
socket of a VM is. It outlives a backend that was killed, so each names its process and when that
started, and one whose process is gone is removed by whoever finds it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

_numbers: Final = itertools.count()


class RegistryError(Exception):
    """The registry cannot be used, or does not have the VM; the text is for the user."""


class Entry(msgspec.Struct, frozen=True):
    """One VM that a backend serves. ``started`` is field 22 of /proc/PID/stat, in clock ticks."""

    name: str
    pid: int
    started: int
    control: str


def folder() -> Path:
    """Return the user's registry, which is made if need be; raises :class:`RegistryError`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and Path(runtime).is_dir():
        where = Path(runtime) / "vmbus"
    else:
        where = Path(tempfile.gettempdir()) / f"vmbus-{os.geteuid()}"
    try:
        where.mkdir(mode=0o700, exist_ok=True)
        status = where.lstat()
    except OSError as error:
        raise RegistryError(f"{where}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise RegistryError(f"{where} is not a folder; remove it, or set XDG_RUNTIME_DIR")
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise RegistryError(
            f"{where} must be yours alone: it belongs to user {status.st_uid} and has mode "
            f"{stat.S_IMODE(status.st_mode):04o}, not 0700"
        )
    return where


@contextlib.contextmanager
def registered(name: str, control: str) -> Iterator[None]:
    """List this process as the one that serves the VM ``name`` while in the context.

    ``control`` is the path of its control socket. Raises :class:`RegistryError`.
    """
    # Backends are killed more often than looked for: who comes clears away who is gone.
    entries()
    pid = os.getpid()
    path = folder() / f"{pid}-{next(_numbers)}.json"
    entry = Entry(name, pid, _started(pid), os.path.abspath(control))
    draft = path.with_suffix(".new")
    try:
        draft.write_bytes(msgspec.json.encode(entry))
        draft.rename(path)
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def entries() -> list[Entry]:
    """Return the VMs that are being served, by name; raises :class:`RegistryError`.

    Entries whose process has ended are removed.
    """
    found: list[Entry] = []
    for path in folder().glob("*.json"):
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=Entry)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            # Gone since, or of another version of this program.
            continue
        if _started(entry.pid) == entry.started:
            found.append(entry)
        else:
            path.unlink(missing_ok=True)
            if Path(entry.control).parent == path.parent:
                Path(entry.control).unlink(missing_ok=True)
    return sorted(found, key=lambda entry: (entry.name, entry.pid))


def find(vm: str) -> Entry:
    """Return the entry of a VM, given its name or the id of its process.

    Raises :class:`RegistryError`, with the names there are, if there is none or more than one.
    """
    known = entries()
    named = [entry for entry in known if entry.name == vm]
    found = named or [entry for entry in known if str(entry.pid) == vm]
    match found:
        case [entry]:
            return entry
        case []:
            names = ", ".join(entry.name for entry in known)
            raise RegistryError(
                f"no VM {vm!r} is running; there "
                + (f"{'is' if len(known) == 1 else 'are'} {names}" if names else "is none")
            )
        case _ if named:
            pids = ", ".join(str(entry.pid) for entry in named)
            raise RegistryError(f"there are {len(named)} VMs {vm!r}; name one by its pid: {pids}")
        case _:
            names = ", ".join(entry.name for entry in found)
            raise RegistryError(f"process {vm} serves {len(found)} VMs; name one: {names}")


def _started(pid: int) -> int:
    """Return when a process started, or 0 if there is none (proc(5), /proc/pid/stat)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The name of the program may have spaces and brackets; what follows has none.
    return int(text.rpartition(")")[2].split()[19])
