# SPDX-License-Identifier: MIT
"""The test guest is reproducible: built again from the same inputs it is the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "guest-images" / "linux" / "build"


def folder_of(*arguments: str) -> Path:
    result = subprocess.run([RECIPE, *arguments], capture_output=True, text=True, check=True)
    return Path(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.e2e
def test_two_builds_are_byte_identical() -> None:
    first = folder_of("--print-path")
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in first.iterdir()}
    # --rebuild builds anew beside it and fails if the result differs.
    second = folder_of("--rebuild", "--print-path")
    after = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in second.iterdir()}
    assert after == before


def test_the_manifest_vouches_for_what_is_there() -> None:
    folder = folder_of("--print-path")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("vmlinuz", "initramfs.img"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert digest in json.dumps(manifest["outputs"])
