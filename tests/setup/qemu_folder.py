# SPDX-License-Identifier: MIT
"""Small stand-ins for what the tools for QEMU's patches work with: sources, a checkout, patches.

The sources are tarballs under the names of the real ones, with a few short files; everything else
(git, patch, tar, perl) is real.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemubuild.patches import BRANCHES, DEFAULT

TOOLS = ("build-qemu", "check-qemu-patches", "port-qemu-patches")
OTHER = next(branch for branch in BRANCHES if branch != DEFAULT)

# What one version calls old_name() is new_name() in the other; otherwise they have the same file.
FILE = """\
#include "first.h"
#include "second.h"

int one(void)
{
    return 1;
}

int two(void)
{
    return {name}();
}

int three(void)
{
    return 3;
}
"""
COMMON = {
    # Git has to take a source as it is, whatever that says of building in it.
    ".gitignore": "/ignored/\n",
    "ignored/file": "one\n",
    "VERSION": "0\n",
    "MAINTAINERS": "Devices\nM: A <a@example.org>\nF: hw/covered/\n\nTHE REST\nF: *\nF: */\n",
    "scripts/checkpatch.pl": (
        "@ARGV = grep { !/^--/ } @ARGV;\n"
        "my $bad = 0;\n"
        'while (<>) { if (/^\\+.*\\t/) { print "$ARGV:$.: ERROR: tab\\n"; $bad = 1; } }\n'
        "exit $bad;\n"
    ),
}
AUTHOR = "A Developer <dev@example.org>"


@dataclass(frozen=True, slots=True)
class Commit:
    """One patch: its subject, and the whole new text of each file it changes."""

    subject: str
    files: Mapping[str, str]
    body: str = "The reason for it."


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout with the tools and a folder of patches, and a cache with the tarballs."""

    root: Path
    cache: Path

    @property
    def patches(self) -> Path:
        """The folder of patches."""
        return self.root / "qemu-patches"

    def run(self, tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of the tools with this cache, without network."""
        return subprocess.run(
            [sys.executable, self.root / "scripts" / tool, "--cache", self.cache, *arguments],
            env=settings(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def write_series(self, commits: Sequence[Commit]) -> list[str]:
        """Make the series of these commits on the default version; return the names."""
        for file in self.patches.glob("*.patch"):
            file.unlink()
        names = format_patches(self.root / "work", sources(DEFAULT.name), commits, self.patches)
        (self.patches / "series").write_text("".join(f"{name}\n" for name in names))
        return names

    def write_own(self, commits: Sequence[Commit], *, only: Sequence[str]) -> None:
        """Make the other version's own patches, of these commits on it, named in ``only``."""
        folder = self.root / "own"
        folder.mkdir()
        names = format_patches(self.root / "work", sources(OTHER.name), commits, folder)
        (self.patches / OTHER.name).mkdir(exist_ok=True)
        by_subject = {name[5:]: name for name in names}
        for name in only:
            shutil.move(folder / by_subject[name[5:]], self.patches / OTHER.name / name)
        shutil.rmtree(folder)

    def commit(self) -> None:
        """Commit everything in the checkout."""
        git(self.root, "add", "-A")
        git(self.root, "commit", "-q", "-m", "state")


def settings() -> dict[str, str]:
    """Return an environment in which Git does not depend on who runs it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "A Developer"), ("EMAIL", "dev@example.org"))
    }
    return kept | identity | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def git(folder: Path, *words: str | Path) -> str:
    """Run Git; return what it prints."""
    return subprocess.run(
        ["git", *words], cwd=folder, env=settings(), check=True, capture_output=True, text=True
    ).stdout


def sources(version: str) -> dict[str, str]:
    """Return the files of one version's source."""
    name = "old_name" if version == DEFAULT.name else "new_name"
    return COMMON | {"hw/file.c": FILE.replace("{name}", name)}


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write files, making their folders."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def format_patches(
    work: Path, base: Mapping[str, str], commits: Sequence[Commit], target: Path
) -> list[str]:
    """Write a patch for each commit on top of a base into a folder; return their names."""
    work.mkdir()
    git(work, "init", "-q")
    write_files(work, base)
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "base")
    for commit in commits:
        write_files(work, commit.files)
        git(work, "add", "-A")
        text = f"{commit.subject}\n\n{commit.body}\n\nSigned-off-by: {AUTHOR}\n"
        git(work, "commit", "-q", "-m", text)
    printed = git(
        work,
        *("format-patch", "-N", "--zero-commit", "--no-signature", "-o", target),
        f"-{len(commits)}",
    )
    shutil.rmtree(work)
    return [Path(line).name for line in printed.splitlines()]


def make_checkout(checkout: Path, root: Path) -> Checkout:
    """Make a checkout with the tools of the real one and no patches, and its cache."""
    made = Checkout(root, root.parent / "cache")
    made.patches.mkdir(parents=True)
    made.cache.mkdir()
    (root / "scripts").mkdir()
    for tool in (*TOOLS, "debian_archive.py"):
        shutil.copy(checkout / "scripts" / tool, root / "scripts" / tool)
    shutil.copytree(
        checkout / "scripts/qemubuild",
        root / "scripts/qemubuild",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    sums = ""
    for branch in BRANCHES:
        unpacked = root.parent / "source"
        write_files(unpacked, sources(branch.name))
        with tarfile.open(made.cache / branch.tarball, "w:xz") as archive:
            archive.add(unpacked, arcname=f"qemu-{branch.version}")
        shutil.rmtree(unpacked)
        digest = hashlib.sha256((made.cache / branch.tarball).read_bytes()).hexdigest()
        sums += f"{digest}  {branch.tarball}\n"
    (made.patches / "SHA256SUMS").write_text(sums)
    (root / ".gitignore").write_text("__pycache__/\n")
    git(root, "init", "-q")
    return made
