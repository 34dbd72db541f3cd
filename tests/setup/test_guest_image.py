# SPDX-License-Identifier: MIT
"""The test guest is reproducible, and a kernel that cannot be had is told in one line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from emulator.lab.images import KERNELS, KernelUnavailable, build_image

RECIPE = Path(__file__).parents[2] / "guest-images" / "linux" / "build"
UNAVAILABLE = 3


def folder_of(*arguments: str) -> Path:
    result = subprocess.run([RECIPE, *arguments], capture_output=True, text=True, check=True)
    return Path(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("kernel", KERNELS)
def test_two_builds_are_byte_identical(kernel: str) -> None:
    try:
        first = build_image(kernel).kernel.parent
    except KernelUnavailable as error:
        if kernel == KERNELS[0]:
            raise
        pytest.skip(str(error))
    before = digests(first)
    # --rebuild builds anew beside it and fails if the result differs.
    second = folder_of("--kernel", kernel, "--rebuild", "--print-path")
    assert digests(second) == before


def digests(folder: Path) -> dict[str, str]:
    """Return the checksums of an image's files, without what ``daemons`` has made of them."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith("initramfs-daemons-")
    }


def test_the_manifest_vouches_for_what_is_there() -> None:
    folder = folder_of("--print-path")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("vmlinuz", "initramfs.img"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert digest in json.dumps(manifest["outputs"])


def run_with_archive(
    archive: str, cache: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the recipe on a machine whose apt knows only this entry, with an empty cache."""
    folder = cache.parent / "apt"
    (folder / "parts").mkdir(parents=True)
    (folder / "sources.list").write_text(archive)
    (folder / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/parts";\n'
    )
    return subprocess.run(
        [RECIPE, "--cache", cache, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"APT_CONFIG": str(folder / "apt.conf")},
    )


@pytest.mark.e2e
@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_suite_that_the_archive_lacks_is_one_line_and_its_own_status(
    kernel: str, tmp_path: Path
) -> None:
    entry = f"deb [trusted=yes] file:{tmp_path}/archive bookworm main\n"
    result = run_with_archive(entry, tmp_path / "cache", "--kernel", kernel)
    assert result.returncode == UNAVAILABLE
    *progress, last = result.stderr.splitlines()
    assert last.startswith(
        f"guest-linux: error: the archive that this machine uses has no kernel {kernel}"
    )
    assert not any("error: " in line for line in progress if "left out" not in line)
    assert "Traceback" not in result.stderr


@pytest.mark.e2e
def test_a_machine_without_debians_archive_has_no_other_kernel(tmp_path: Path) -> None:
    result = run_with_archive("", tmp_path / "cache", "--kernel", "6.12")
    assert result.returncode == UNAVAILABLE
    assert "has no kernel 6.12" in result.stderr


def test_find_builds_and_fetches_nothing(tmp_path: Path) -> None:
    result = run_with_archive("", tmp_path / "cache", "--find")
    assert result.returncode == 1
    assert result.stdout == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.e2e
def test_find_names_what_has_been_built() -> None:
    assert folder_of("--find") == folder_of("--print-path")
