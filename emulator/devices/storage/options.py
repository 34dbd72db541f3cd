# SPDX-License-Identifier: MIT
"""The options of storage devices in a machine's configuration, and what they open.

A bad option is one line that names the device and the field (:class:`DeviceStateError`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from emulator.devices.base import DeviceStateError
from emulator.devices.storage.backend import Backend, BackendError, NullBackend
from emulator.devices.storage.nbd import NbdDisk, parse_uri
from emulator.devices.storage.protocol import MAX_LUNS, StorVersion
from emulator.devices.storage.rawfile import RawFile
from emulator.devices.storage.scsi import BLOCK

T = TypeVar("T", bound=msgspec.Struct)

_SERIAL: Final = r"^[\x21-\x7e]{1,32}$"


class Medium(StrEnum):
    """What a LUN is."""

    DISK = "disk"
    DVD = "dvd"


Lun = Annotated[int, msgspec.Meta(ge=0, lt=MAX_LUNS)]


class LunOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One LUN. Exactly one of ``path``, ``nbd`` and ``null_size`` says what is behind it; a DVD
    drive may have none, and is empty then.
    """

    lun: Lun = 0
    medium: Medium = Medium.DISK
    path: str = ""
    """A raw image, an ISO, or a block device."""
    nbd: str = ""
    """An export of an NBD server, as nbd+unix:///NAME?socket=PATH: qcow2, VHDX and others, by
    qemu-storage-daemon."""
    null_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes of a disk that keeps nothing, for measurements."""
    read_only: bool = False
    direct: bool = False
    """Past the page cache (O_DIRECT)."""
    uuid: str = ""
    """The unit's identity; without it, one made of the names of machine and device, and the LUN."""
    serial: Annotated[str, msgspec.Meta(pattern=_SERIAL)] | None = None
    """The unit's serial number; without it, the hexadecimal digits of the identity."""
    allow_changed: bool = False
    """Restore a snapshot although the file was written since; a guest that has a file system
    mounted on it will damage it.
    """

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        given = [bool(self.path), bool(self.nbd), bool(self.null_size)].count(True)
        if given > 1:
            raise ValueError("give one of path, nbd and null_size")
        if self.medium is Medium.DISK and not given:
            raise ValueError("a disk needs a path, or nbd")
        if self.nbd:
            parse_uri(self.nbd)
        if self.null_size % BLOCK:
            raise ValueError(f"null_size is not a multiple of {BLOCK}")
        if self.uuid:
            uuid.UUID(self.uuid)

    @property
    def what(self) -> str:
        """What is behind it, for a person."""
        return self.path or self.nbd or ("nothing" if not self.null_size else "a null disk")

    @property
    def is_read_only(self) -> bool:
        """Whether nothing may be written: a DVD never is."""
        return self.read_only or self.medium is Medium.DVD

    def open(self) -> Backend | None:
        """Open what is behind the LUN, None for an empty drive; raises :class:`BackendError`."""
        if self.null_size:
            return NullBackend(self.null_size)
        if self.nbd:
            return NbdDisk(self.nbd, read_only=self.is_read_only)
        if not self.path:
            return None
        return RawFile(Path(self.path), read_only=self.is_read_only, direct=self.direct)


def version_named(text: str) -> StorVersion:
    """Return the protocol version that a person calls "6.2"; raises ValueError."""
    for version in StorVersion:
        if str(version) == text:
            return version
    known = ", ".join(map(str, StorVersion))
    raise ValueError(f"there is no storage protocol {text!r}; known: {known}")


class ScsiOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A SCSI controller."""

    luns: tuple[LunOptions, ...] = ()
    sub_channels: Annotated[int, msgspec.Meta(ge=0, le=64)] = 16
    """The most that a guest may ask for; Linux asks for one less than it has CPUs."""
    max_version: str = str(StorVersion.WIN10)
    """The newest protocol that a guest can negotiate."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        version_named(self.max_version)
        numbers = [options.lun for options in self.luns]
        if twice := {number for number in numbers if numbers.count(number) > 1}:
            raise ValueError(f"LUNs must differ: {', '.join(map(str, sorted(twice)))}")


class IdeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An accelerator of one IDE disk, which the guest also finds on its IDE controller."""

    disk: LunOptions
    channel: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    device: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    max_version: str = str(StorVersion.WIN10)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        version_named(self.max_version)
        if self.disk.lun or self.disk.medium is not Medium.DISK:
            raise ValueError("an IDE accelerator has one disk, at LUN 0")


def convert(what: str, options: Mapping[str, Any], kind: type[T]) -> T:
    """Check options; raises :class:`DeviceStateError` with where and what is wrong."""
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise DeviceStateError(f"{what}: options: {error}") from error


def open_lun(what: str, options: LunOptions) -> Backend | None:
    """Open what is behind a LUN; raises :class:`DeviceStateError`."""
    try:
        return options.open()
    except BackendError as error:
        raise DeviceStateError(f"{what}: LUN {options.lun}: {error}") from error
