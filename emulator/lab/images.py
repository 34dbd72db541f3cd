# SPDX-License-Identifier: MIT
"""Where the test guest is: the folder that ``guest-images/linux/build`` made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from emulator.machine.built import NotBuilt, built_path


class ImageError(Exception):
    """There is no guest image; the text says how to get one."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A bootable test guest."""

    kernel: Path
    initramfs: Path


def find_image() -> GuestImage:
    """Return the image in ``$VMBUS_GUEST`` or the one built last; raises :class:`ImageError`."""
    named = os.environ.get("VMBUS_GUEST")
    try:
        folder = Path(named) if named else built_path("guest-images", "linux", "build")
    except NotBuilt as error:
        raise ImageError(
            "the test guest has not been built; run guest-images/linux/build or set VMBUS_GUEST"
        ) from error
    image = GuestImage(folder / "vmlinuz", folder / "initramfs.img")
    if not (image.kernel.is_file() and image.initramfs.is_file()):
        raise ImageError(f"{folder} holds no guest image; run guest-images/linux/build")
    return image
