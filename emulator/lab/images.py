# SPDX-License-Identifier: MIT
"""Where the test guest is: the folder that ``guest-images/linux/build`` made."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


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
    folder = Path(named) if named else _built()
    image = GuestImage(folder / "vmlinuz", folder / "initramfs.img")
    if not (image.kernel.is_file() and image.initramfs.is_file()):
        raise ImageError(f"{folder} holds no guest image; run guest-images/linux/build")
    return image


def _built() -> Path:
    script = Path(__file__).parents[2] / "guest-images" / "linux" / "build"
    try:
        result = subprocess.run(
            [script, "--print-path"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ImageError(
            "the test guest has not been built; run guest-images/linux/build or set VMBUS_GUEST"
        ) from error
    return Path(result.stdout.strip().splitlines()[-1])
