# SPDX-License-Identifier: MIT
"""The inputs that are kept for each target: one a line, in base64, in corpus/TARGET.txt.

A line that begins with # is the licence, or tells what the next input has found.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "corpus"


def kept(target: str) -> list[bytes]:
    """Return the inputs of a target; raises OSError if there are none."""
    lines = (FOLDER / f"{target}.txt").read_text().splitlines()
    return [base64.b64decode(line) for line in lines if line and not line.startswith("#")]


def unpack(target: str, folder: Path) -> None:
    """Write the inputs of a target to files, for a fuzzer to begin with."""
    for number, data in enumerate(kept(target)):
        (folder / f"{number:04}").write_bytes(data)


def keep(target: str, folder: Path) -> int:
    """Add what the files of ``folder`` have and the corpus has not; returns how many those are."""
    known = set(kept(target))
    new = {path.read_bytes() for path in folder.iterdir() if path.is_file()} - known
    with (FOLDER / f"{target}.txt").open("a") as file:
        file.writelines(f"{base64.b64encode(data).decode()}\n" for data in sorted(new, key=_order))
    return len(new)


def _order(data: bytes) -> tuple[int, bytes]:
    return len(data), data
