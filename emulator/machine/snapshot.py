# SPDX-License-Identifier: MIT
"""A snapshot on disk: a folder with QEMU's migration stream and a manifest that vouches for it.

``manifest.json`` names the format, the machine (what must be the same when it is restored), the
devices, and for each file its size and SHA-256; it ends with its own SHA-256. ``machine.state`` is
QEMU's stream; the VMBus host's state is inside it (docs/vmbus-user.md section 6), so that RAM,
CPUs and host cannot drift apart.

A snapshot is written to a temporary folder beside its place and renamed when it is whole. A restore
opens it read-only: a restore that fails leaves it as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from emulator.machine.config import Accel, DeviceConfig, MachineConfig

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
STATE: Final = "machine.state"


class SnapshotError(Exception):
    """A snapshot cannot be written, is damaged, or is not of this machine."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the snapshot; ``size`` in bytes."""

    size: int
    sha256: str


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be the same in the machine that takes the snapshot."""

    name: str
    smp: int
    memory_mib: int
    accel: Accel
    vmbus: bool
    devices: tuple[DeviceConfig, ...]
    dimms: tuple[int, ...] = ()
    dimm_slots: int = 0
    max_memory_mib: int = 0

    @classmethod
    def of(cls, config: MachineConfig, accel: Accel) -> Machine:
        """Take from a configuration what a snapshot depends on; ``accel`` is the one in use."""
        return cls(
            config.name,
            config.smp,
            config.memory_mib,
            accel,
            config.vmbus,
            # What a device has behind it may have moved; the device itself knows whether it fits.
            tuple(msgspec.structs.replace(device, options={}) for device in config.devices),
            config.dimms,
            config.dimm_slots,
            config.max_memory_mib,
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``manifest.json``; ``sha256`` covers all that stands before it."""

    format: int
    created: str
    tool: str
    qemu: str
    machine: Machine
    kernel: FileEntry | None
    initramfs: FileEntry | None
    files: dict[str, FileEntry]
    sha256: str = ""

    def sealed(self) -> Manifest:
        """Return the manifest with its checksum filled in."""
        return msgspec.structs.replace(self, sha256=self._digest())

    def intact(self) -> bool:
        """Whether the checksum fits."""
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        bare = msgspec.structs.replace(self, sha256="")
        return hashlib.sha256(msgspec.json.encode(bare, order="sorted")).hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Return size and checksum of a file; raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(os.fstat(file.fileno()).st_size, digest)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest and the presence and size of every file.

    Checksums of the files are not compared here: that takes long and can go on beside other work
    (:func:`damage`). Raises :class:`SnapshotError`.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise SnapshotError(f"{folder} is not a snapshot: {MANIFEST}: {error.strerror}") from error
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SnapshotError(f"{folder}: {MANIFEST} is damaged: {error}") from error
    if not manifest.intact():
        raise SnapshotError(f"{folder}: {MANIFEST} is damaged: its checksum does not fit")
    if manifest.format != FORMAT:
        raise SnapshotError(
            f"{folder}: snapshot format {manifest.format}; this version reads {FORMAT}"
        )
    for name, entry in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise SnapshotError(f"{folder}: {name} is missing: {error.strerror}") from error
        if size != entry.size:
            raise SnapshotError(
                f"{folder}: {name} is damaged: {size} bytes instead of {entry.size}"
            )
    return manifest


def check_machine(
    manifest: Manifest, machine: Machine, qemu: str, *, devices_may_differ: bool = False
) -> None:
    """Compare the manifest with the machine at hand; raises with all differences at once.

    With ``devices_may_differ`` the devices are the backend's to compare.
    """
    theirs = msgspec.to_builtins(manifest.machine)
    ours = msgspec.to_builtins(machine)
    differ = [
        f"{field}: {theirs[field]} in the snapshot, {ours[field]} here"
        for field in theirs
        if theirs[field] != ours[field] and not (devices_may_differ and field == "devices")
    ]
    if manifest.qemu != qemu:
        differ.append(f"qemu: {manifest.qemu} in the snapshot, {qemu} here")
    if differ:
        raise SnapshotError("the snapshot is of another machine: " + "; ".join(differ))


def damage(folder: Path, manifest: Manifest) -> str:
    """Compare the checksums of all files; returns what is wrong, or the empty string."""
    for name, entry in manifest.files.items():
        try:
            found = file_entry(folder / name)
        except OSError as error:
            return f"{folder}: {name}: {error.strerror}"
        if found != entry:
            return f"{folder}: {name} is damaged: its checksum does not fit"
    return ""


class Draft:
    """A snapshot being written; use as a context manager, end with :meth:`publish`."""

    def __init__(self, folder: Path) -> None:
        """Prepare to make ``folder``, which must not exist. Raises :class:`SnapshotError`."""
        if folder.exists():
            raise SnapshotError(f"{folder} exists; choose another name or remove it")
        self._folder = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        except OSError as error:
            raise SnapshotError(f"cannot write {folder}: {error.strerror}") from error

    def __enter__(self) -> Draft:
        """Return the draft."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not published."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.path)

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, then give the folder its name. Raises :class:`SnapshotError`."""
        try:
            text = msgspec.json.format(msgspec.json.encode(manifest.sealed()))
            (self.path / MANIFEST).write_bytes(text + b"\n")
            self.path.rename(self._folder)
        except OSError as error:
            raise SnapshotError(f"cannot write {self._folder}: {error.strerror}") from error
