# SPDX-License-Identifier: MIT
"""Fetch QEMU's source from Debian's archive, with this machine's own settings of apt."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from debian_archive import find_archives, is_debian, private_options

from .command import BuildError, run, say
from .patches import Branch, Source, check_sum, hash_file


def upstream(version: str) -> str:
    """Return QEMU's own version number in that of a Debian package: 1:10.0.13+ds-1 -> 10.0.13."""
    return re.sub(r"^\d+:|[+-].*$", "", version)


def choose_version(versions: Sequence[str], branch: Branch) -> str | None:
    """Return the package version to take: the exact one, else the newest of the branch."""
    numbers = {version: upstream(version) for version in versions}
    fitting = [v for v in versions if numbers[v] == branch.version] or [
        v for v in versions if numbers[v].startswith(f"{branch.name}.")
    ]

    def order(version: str) -> tuple[list[int], str]:
        return [int(n) for n in re.findall(r"\d+", numbers[version])], version

    return max(fitting, key=order, default=None)


def source_versions(options: Sequence[str]) -> list[str]:
    """Return the versions of the source package qemu."""
    text = subprocess.run(
        ["apt-cache", *options, "showsrc", "--only-source", "qemu"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return re.findall(r"^Version: (\S+)$", text, re.MULTILINE)


def download(folder: Path, branch: Branch, wanted: Source, log: Path) -> tuple[Path, Source]:
    """Fetch a branch's source from Debian's archive; return the tarball and what it is.

    apt has compared the file with the archive's signed index; it has the checksum of ``wanted``
    too unless that version has left the archive.
    """
    if not shutil.which("apt-get"):
        raise BuildError(
            "there is no apt on this machine to get QEMU's source with; "
            f"name a tarball: --source {branch.tarball}"
        )
    trouble: BuildError | None = None
    for number, archive in enumerate(find_archives()):
        place = folder / f"apt-{number}"
        place.mkdir()
        options = private_options(place, archive.stanza([branch.suite], "deb-src"))
        try:
            run(
                f"source: reading Debian {branch.suite}'s index",
                ["apt-get", *options, "-q", "update"],
                place,
                log=log,
            )
        except BuildError as error:
            trouble = trouble or error
            continue
        if not is_debian(options):
            continue
        versions = source_versions(options)
        version = choose_version(versions, branch)
        if version is None:
            trouble = BuildError(
                f"Debian {branch.suite} has no QEMU {branch.name}.x any more (it has "
                f"{', '.join(versions) or 'none'}); name a tarball: "
                f"--source {branch.tarball}"
            )
            continue
        if upstream(version) != wanted.version:
            say(
                f"source: QEMU {wanted.version} has left the archive; "
                f"trying {upstream(version)} instead"
            )
        run(
            f"source: downloading qemu {version}",
            [
                "apt-get",
                *options,
                *("-q", "source", "--download-only", "--tar-only", "--only-source"),
                f"qemu={version}",
            ],
            place,
            log=log,
        )
        tarballs = list(place.glob("qemu_*.orig.tar.xz"))
        if len(tarballs) != 1:
            raise BuildError(
                f"the source package qemu {version} does not have the expected tarball"
            )
        found = Source(upstream(version), hash_file(tarballs[0]))
        if found.version == wanted.version:
            check_sum(tarballs[0], found, wanted)
        return tarballs[0], found
    raise trouble or BuildError(
        "apt on this machine has no Debian archive to get QEMU's source from; "
        f"name a tarball: --source {branch.tarball}"
    )


def obtain(
    cache: Path, folder: Path, branch: Branch, wanted: Source, log: Path
) -> tuple[Path, Source]:
    """Return a branch's tarball and what it is: the one kept in the cache, else a new download.

    The wanted version is kept there; another one that had to stand in for it stays in ``folder``.
    """
    kept = cache / branch.tarball
    if kept.exists() and hash_file(kept) == wanted.sha256:
        return kept, wanted
    tarball, found = download(folder, branch, wanted, log)
    if found == wanted:
        tarball = tarball.replace(kept)
    return tarball, found
