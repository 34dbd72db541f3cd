# SPDX-License-Identifier: MIT
"""Where the test guests are: the folders that ``guest-images/linux/build`` makes."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulator.machine.built import NotBuilt, built_path

KERNELS: Final = ("6.1", "6.12", "newest")
"""What ``guest-images/linux/build --kernel`` takes; the first is its default."""

_UNAVAILABLE: Final = 3
"""The builder's exit status when Debian's archive, as it is reached here, lacks the kernel."""


class ImageError(Exception):
    """There is no guest image; the text says how to get one."""


class KernelUnavailable(ImageError):
    """The archive that this machine uses has no such kernel; the text is the builder's reason."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A bootable test guest."""

    kernel: Path
    initramfs: Path

    @property
    def without_probe(self) -> str:
        """Why the probe module is not in it; empty if it is."""
        manifest = json.loads(self.kernel.with_name("manifest.json").read_text())
        reason: str = manifest.get("without_probe", "")
        return reason

    @property
    def release(self) -> str:
        """The kernel's release, as ``uname -r`` in the guest says it."""
        manifest = json.loads(self.kernel.with_name("manifest.json").read_text())
        release: str = manifest["kernel_release"]
        return release


def find_image() -> GuestImage:
    """Return the image in ``$VMBUS_GUEST`` or the one built last; raises :class:`ImageError`."""
    named = os.environ.get("VMBUS_GUEST")
    try:
        folder = Path(named) if named else built_path("guest-images", "linux", "build")
    except NotBuilt as error:
        raise ImageError(
            "the test guest has not been built; run guest-images/linux/build or set VMBUS_GUEST"
        ) from error
    return _image_in(folder)


def build_image(kernel: str) -> GuestImage:
    """Return the image of one of ``KERNELS``, building it if need be (some 60 MB of downloads).

    Raises :class:`KernelUnavailable` or :class:`ImageError`.
    """
    builder = Path(__file__).parents[2] / "guest-images" / "linux" / "build"
    try:
        result = subprocess.run(
            [builder, "--kernel", kernel, "--print-path"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise ImageError(f"{builder}: {error.strerror}; use a checkout") from error
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        kind = KernelUnavailable if result.returncode == _UNAVAILABLE else ImageError
        raise kind(said[-1])
    return _image_in(Path(result.stdout.splitlines()[-1]))


def _image_in(folder: Path) -> GuestImage:
    image = GuestImage(folder / "vmlinuz", folder / "initramfs.img")
    if not (image.kernel.is_file() and image.initramfs.is_file()):
        raise ImageError(f"{folder} holds no guest image; run guest-images/linux/build")
    return image
