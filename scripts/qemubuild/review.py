# SPDX-License-Identifier: MIT
"""What can be said about QEMU's patches beside the tree that they are applied to."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .lint import changes
from .patches import Patch, hash_file
from .steps import PATCH

# checkpatch.pl asks this about every new file; uncovered() is the answer.
MAINTAINERS_QUESTION = "added, moved or deleted file(s)"


def checkpatch(patch: Patch, tree: Path) -> Iterator[str]:
    """Yield what QEMU's own style checker says about a patch."""
    file = tree.parent / patch.name
    file.write_bytes(patch.content)
    result = subprocess.run(
        ["perl", "scripts/checkpatch.pl", "--terse", "--no-summary", file],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    if result.returncode and not lines:
        yield f"{patch.name}: checkpatch.pl ended with status {result.returncode}"
    for line in lines:
        if MAINTAINERS_QUESTION not in line:
            yield f"{patch.name}: checkpatch.pl: {line.removeprefix(f'{file}:')}"


def uncovered(paths: Sequence[str], maintainers: str) -> list[str]:
    """Return the paths that no section of MAINTAINERS but the one for everything has."""
    patterns = re.findall(r"^F:\s*(\S+)$", maintainers, re.MULTILINE)
    patterns = [pattern for pattern in patterns if pattern not in ("*", "*/")]

    def covers(pattern: str, path: str) -> bool:
        if pattern.endswith("/"):
            return path.startswith(pattern) or fnmatch.fnmatchcase(path, f"{pattern}*")
        # As in get_maintainer.pl: a star does not reach into folders.
        return pattern.count("/") == path.count("/") and fnmatch.fnmatchcase(path, pattern)

    return [path for path in paths if not any(covers(pattern, path) for pattern in patterns)]


def needless(patch: Patch, original: Patch, tree: Path) -> bool:
    """Would the patch that this one replaces have the same effect on the tree before it?"""
    paths = sorted({change.path for either in (patch, original) for change in changes(either)})
    effects = []
    for either in (patch, original):
        with tempfile.TemporaryDirectory(dir=tree.parent) as name:
            copy = Path(name)
            for path in paths:
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                if (tree / path).exists():
                    shutil.copy(tree / path, copy / path)
            result = subprocess.run(
                PATCH, cwd=copy, input=either.content, capture_output=True, check=False
            )
            if result.returncode:
                return False
            effects.append([hash_file(copy / p) if (copy / p).exists() else "" for p in paths])
    return effects[0] == effects[1]


def warnings(log: Path, start: int, touched: set[str]) -> list[str]:
    """Return the compiler's warnings in a log, from a position on, about the given files."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    found = re.findall(r"^(?:\.\./)*(?:qemu/)?(\S+?):(\d+):\d+: warning: (.*)$", text, re.MULTILINE)
    return sorted({f"{path}:{line}: {what}" for path, line, what in found if path in touched})
