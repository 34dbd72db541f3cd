# SPDX-License-Identifier: MIT
"""Which versions of QEMU there are patches for, and which patches those are.

``qemu-patches/README.md`` describes the folder that this reads.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from .command import BuildError

PATCHES = Path(__file__).resolve().parents[2] / "qemu-patches"


@dataclass(frozen=True, slots=True)
class Branch:
    """A stable branch of QEMU that there are patches for."""

    name: str
    # The point release that the patches have been made and tested with.
    version: str
    # The Debian release whose archive has it, whatever release this machine runs.
    suite: str

    @property
    def tarball(self) -> str:
        """The name that Debian gives the source."""
        return f"qemu_{self.version}+ds.orig.tar.xz"


# The first is the one that `series` is written for, and the default.
BRANCHES = (
    Branch("10.0", "10.0.13", "trixie"),
    Branch("10.2", "10.2.2", "sid"),
)
DEFAULT = BRANCHES[0]

# The patches without which Debian's tarball does not build: all that an unpatched QEMU has.
NEEDED_TO_BUILD = ("0001-meson-do-not-require-the-bundled-edk2-images.patch",)


@dataclass(frozen=True, slots=True)
class Source:
    """A tarball of QEMU's source: its version and the SHA-256 of the file, in hexadecimal."""

    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch, read once: what is built is what has been hashed, whatever becomes of the file."""

    name: str
    content: bytes


def find_branch(version: str) -> Branch:
    """Return the branch that a branch's or a point release's number means.

    Raises BuildError if there are no patches for it.
    """
    for branch in BRANCHES:
        if version in (branch.name, branch.version):
            return branch
        if re.fullmatch(re.escape(branch.name) + r"\.\d+", version):
            raise BuildError(
                f"QEMU {version} has not been tried with the patches, {branch.version} has: "
                f"--version {branch.name}"
            )
    raise BuildError(
        f"there are no patches for QEMU {version}; "
        f"versions with patches: {', '.join(branch.name for branch in BRANCHES)}"
    )


def read_list(file: Path) -> list[str]:
    """Return the names in a file that has one in each line and may have comments after ``#``."""
    names = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [name for name in names if name]


def read_series(branch: Branch, folder: Path = PATCHES) -> list[Patch]:
    """Return a branch's patches in the order in which they are applied."""
    own = folder / branch.name
    patches = []
    try:
        absent = read_list(own / "absent") if (own / "absent").exists() else []
        for name in read_list(folder / "series"):
            if name not in absent:
                file = own / name
                patches.append(Patch(name, (file if file.exists() else folder / name).read_bytes()))
    except OSError as error:
        raise BuildError(f"{error.filename}: {error.strerror}; use a complete checkout") from None
    return patches


def read_source(branch: Branch, folder: Path = PATCHES) -> Source:
    """Return the source that a branch's patches are made for."""
    sums = folder / "SHA256SUMS"
    try:
        for line in sums.read_text().splitlines():
            digest, _, file = line.partition("  ")
            if file == branch.tarball:
                return Source(branch.version, digest)
    except OSError as error:
        raise BuildError(f"{sums}: {error.strerror}; use a complete checkout") from None
    raise BuildError(f"{sums} has no line for {branch.tarball}; use a complete checkout")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None


def check_sum(tarball: Path, found: Source, wanted: Source) -> None:
    """Raise BuildError unless the tarball is the one that the patches are made for."""
    if found.sha256 != wanted.sha256:
        raise BuildError(
            f"{tarball.name} is not the tarball of QEMU {wanted.version} that the patches are made "
            f"for: its SHA-256 is {found.sha256}, not {wanted.sha256} (Debian's "
            f"qemu_{wanted.version}+ds.orig.tar.xz)"
        )
