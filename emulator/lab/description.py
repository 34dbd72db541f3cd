# SPDX-License-Identifier: MIT
"""A machine as a person describes it: a small TOML file (docs/run.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from emulator.devices import kinds
from emulator.lab.images import find_image
from emulator.machine.config import Accel, DeviceConfig, MachineConfig, Quotas, version_named

LINUX: Final = "linux"
"""The ``guest`` that stands for the kernel and initramfs of ``guest-images/linux``."""

_UNITS: Final = {"M": 1, "MiB": 1, "G": 1024, "GiB": 1024}


class DescriptionError(Exception):
    """The file cannot be read, or asks for what cannot be; the text names the file."""


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. Paths in it are relative to the folder that it is in.

    ``memory`` is a number of MiB, or a text such as "2G". What has no key goes to QEMU by
    ``qemu_args``, as it is.
    """

    name: str = ""
    guest: str = ""
    kernel: str = ""
    initramfs: str = ""
    append: str = ""
    firmware: str = ""
    cpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    memory: int | str = 512
    accel: Accel = Accel.AUTO
    devices: tuple[DeviceConfig, ...] = ()
    quotas: Quotas = Quotas()
    max_version: str = ""
    qemu_args: tuple[str, ...] = ()


def read_description(path: Path) -> MachineConfig:
    """Return the machine that a file describes.

    Raises :class:`DescriptionError`, and ``emulator.lab.images.ImageError`` if the test guest has
    not been built.
    """
    try:
        data: Any = msgspec.toml.decode(path.read_bytes())
        found = msgspec.convert(data, Description)
        return _machine(found, path)
    except OSError as error:
        raise DescriptionError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise DescriptionError(f"{path}: {error}") from error


def _machine(found: Description, path: Path) -> MachineConfig:
    def beside(what: str, name: str) -> Path | None:
        if not name:
            return None
        file = path.resolve().parent / name
        if not file.is_file():
            raise ValueError(f"{what}: there is no file {file}")
        return file

    kernel, initramfs = beside("kernel", found.kernel), beside("initramfs", found.initramfs)
    firmware = beside("firmware", found.firmware)
    match found.guest:
        case "":
            pass
        case "linux":
            if kernel or initramfs or firmware:
                raise ValueError(
                    "guest has a kernel of its own: leave out kernel, initramfs, firmware"
                )
            image = find_image()
            kernel, initramfs = image.kernel, image.initramfs
        case other:
            raise ValueError(f"guest {other!r} is not known; there is {LINUX!r}")
    for device in found.devices:
        if device.kind not in kinds():
            raise ValueError(
                f"device {device.name}: unknown kind {device.kind!r}; known: {', '.join(kinds())}"
            )
    if kernel is None and firmware is None and not found.qemu_args:
        raise ValueError("nothing to boot: give guest, kernel or firmware, or a disk by qemu_args")
    return MachineConfig(
        name=found.name or path.stem,
        kernel=kernel,
        initramfs=initramfs,
        firmware=firmware,
        append=found.append,
        smp=found.cpus,
        memory_mib=_mebibytes(found.memory),
        accel=found.accel,
        devices=found.devices,
        quotas=found.quotas,
        max_version=version_named(found.max_version),
        qemu_args=found.qemu_args,
    )


def _mebibytes(memory: int | str) -> int:
    if isinstance(memory, int):
        return memory
    digits = memory.rstrip("MGiB ")
    unit = memory[len(digits) :].strip()
    if not digits.isdecimal() or unit not in _UNITS:
        raise ValueError(f'memory {memory!r}: give MiB, as 512, or a text such as "512M" or "2G"')
    return int(digits) * _UNITS[unit]
