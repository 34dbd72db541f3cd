# SPDX-License-Identifier: MIT
"""requirements.txt: every package by hash, no index named, everything pyproject.toml asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "scripts/lock", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_line_is_a_pin_with_hashes(checkout: Path) -> None:
    text = (checkout / "requirements.txt").read_text()
    body = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    pins = re.findall(r"^[a-z0-9-]+==[\w.]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n", body, re.M)
    assert len(pins) > 10
    assert "".join(pins) == body, "something besides pins and hashes (an index?) is in the lock"


def test_a_dependency_that_is_not_locked_is_reported(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/lock", "requirements.txt", "pyproject.toml"):
        shutil.copy(checkout / name, tmp_path / name)
    assert check(tmp_path).returncode == 0
    project = tmp_path / "pyproject.toml"
    project.write_text(
        project.read_text().replace("dependencies = [", 'dependencies = ["Some_Thing>1",', 1)
    )
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: requirements.txt lacks some-thing; run scripts/lock\n"
