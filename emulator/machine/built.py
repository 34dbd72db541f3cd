# SPDX-License-Identifier: MIT
"""Find what the build scripts of this checkout have made: they are asked, not their cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

from emulator.memory import IMPLEMENTATION


class NotBuilt(Exception):
    """The script has made nothing yet, or is not there (an installed package has none)."""


def built_path(*script: str) -> Path:
    """Return the path that ``<script> --print-path`` prints last.

    ``script`` is a path from the root of the checkout. Raises :class:`NotBuilt`.
    """
    program = Path(__file__).parents[2].joinpath(*script)
    try:
        result = subprocess.run(
            [program, "--print-path"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotBuilt(f"{program} has made nothing yet") from error
    return Path(result.stdout.strip().splitlines()[-1])


def native_memory() -> bool:
    """Whether guest memory is accessed by the C extension and not by the pure Python reference."""
    return IMPLEMENTATION == "native"
