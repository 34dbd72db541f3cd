# SPDX-License-Identifier: MIT
"""scripts/build-qemu: which version, which patches, which tarball. Nothing is compiled here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from qemubuild import archive
from qemubuild.archive import choose_version, obtain
from qemubuild.command import BuildError
from qemubuild.patches import (
    BRANCHES,
    DEFAULT,
    Branch,
    Source,
    find_branch,
    hash_file,
    read_series,
    read_source,
)
from qemubuild.steps import key

OTHER = next(branch for branch in BRANCHES if branch != DEFAULT)


def run(checkout: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts/build-qemu", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Return a folder with three patches, one of which the other version replaces."""
    folder = tmp_path / "patches"
    (folder / OTHER.name).mkdir(parents=True)
    (folder / "series").write_text("# made for one version\n0001-a.patch\n0002-b.patch\n3.patch\n")
    for name in ("0001-a.patch", "0002-b.patch", "3.patch"):
        (folder / name).write_text(f"{name}\n")
    (folder / OTHER.name / "0002-b.patch").write_text("another\n")
    (folder / OTHER.name / "absent").write_text("# why\n3.patch  # it has that\n")
    return folder


@pytest.mark.parametrize(
    ("version", "branch"),
    [
        ("10.0", "10.0"),
        ("10.0.13", "10.0"),
        ("10.2", "10.2"),
        ("10.2.2", "10.2"),
    ],
)
def test_a_version_is_a_branch_or_its_point_release(version: str, branch: str) -> None:
    assert find_branch(version).name == branch


@pytest.mark.parametrize("version", ["10.1", "10", "10.20", "11.1.2", "latest", "", "10.0.13.1"])
def test_a_version_without_patches_names_those_that_have_them(
    checkout: Path, version: str, tmp_path: Path
) -> None:
    result = run(checkout, "--version", version, "--cache", tmp_path / "cache")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: there are no patches for QEMU {version}; versions with patches: 10.0, 10.2\n"
    )
    assert not (tmp_path / "cache").exists()


def test_another_point_release_names_the_one_that_was_tried(checkout: Path) -> None:
    result = run(checkout, "--version", "10.2.9")
    assert result.returncode == 1
    assert result.stderr == (
        "error: QEMU 10.2.9 has not been tried with the patches, 10.2.2 has: --version 10.2\n"
    )


def test_what_has_not_been_built_says_how_to(checkout: Path, tmp_path: Path) -> None:
    result = run(checkout, "--version", "10.2", "--print-path", "--cache", tmp_path)
    assert result.returncode == 1
    assert result.stderr.endswith("run scripts/build-qemu --version 10.2\n")


def test_a_tarball_of_another_version_is_refused(checkout: Path, tmp_path: Path) -> None:
    tarball = tmp_path / DEFAULT.tarball
    tarball.write_bytes(b"not QEMU")
    result = run(checkout, "--version", "10.2", "--source", tarball, "--cache", tmp_path)
    assert result.returncode == 1
    assert "is not the tarball of QEMU 10.2.2" in result.stderr
    assert result.stderr.count("\n") == 1


def test_each_version_has_its_checksum() -> None:
    assert len({read_source(branch).sha256 for branch in BRANCHES}) == len(BRANCHES)


def test_a_version_replaces_and_leaves_out_patches(patches: Path) -> None:
    ours = read_series(DEFAULT, patches)
    assert [patch.name for patch in ours] == ["0001-a.patch", "0002-b.patch", "3.patch"]
    theirs = read_series(OTHER, patches)
    assert [patch.name for patch in theirs] == ["0001-a.patch", "0002-b.patch"]
    assert theirs[0] == ours[0]
    assert theirs[1].content == b"another\n"


def test_what_is_built_is_named_by_the_patches_that_are_used(patches: Path) -> None:
    source = Source("0", "00")

    def names() -> list[str]:
        return [key(source, read_series(branch, patches)) for branch in BRANCHES]

    before = names()
    assert len(set(before)) == len(BRANCHES)
    (patches / OTHER.name / "0002-b.patch").write_text("a third one\n")
    after = names()
    assert after[0] == before[0]
    assert after[1] != before[1]
    (patches / "0002-b.patch").write_text("changed, and replaced there\n")
    assert names()[1] == after[1]
    (patches / "0001-a.patch").write_text("changed for all\n")
    assert set(names()).isdisjoint(after)


def test_an_incomplete_folder_is_one_clear_error(patches: Path) -> None:
    (patches / "0001-a.patch").unlink()
    with pytest.raises(BuildError, match=r"0001-a\.patch: .*use a complete checkout"):
        read_series(OTHER, patches)


def test_the_newest_of_a_branch_stands_in_for_what_has_left_the_archive() -> None:
    branch = Branch("10.2", "10.2.2", "sid")
    versions = [
        "1:10.0.13+ds-1",
        "1:10.2.2+ds-1",
        "1:10.2.10+ds-1",
        "1:10.20.1+ds-1",
        "1:11.1+ds-1",
    ]
    assert choose_version(versions, branch) == "1:10.2.2+ds-1"
    versions.remove("1:10.2.2+ds-1")
    assert choose_version(versions, branch) == "1:10.2.10+ds-1"
    versions.remove("1:10.2.10+ds-1")
    assert choose_version(versions, branch) is None


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Put a new file in place of what a download results in; return the versions fetched."""
    fetched: list[str] = []

    def download(folder: Path, branch: Branch, wanted: Source, log: Path) -> tuple[Path, Source]:
        fetched.append(branch.version)
        file = folder / branch.tarball
        shutil.copy(tmp_path / "archive", file)
        return file, Source(branch.version, hash_file(file))

    monkeypatch.setattr(archive, "download", download)
    return fetched


def test_a_tarball_is_kept_and_used_only_while_it_is_whole(
    downloads: list[str], tmp_path: Path
) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "building"
    cache.mkdir()
    folder.mkdir()
    (tmp_path / "archive").write_bytes(b"the source")
    wanted = Source(OTHER.version, hash_file(tmp_path / "archive"))

    def fetch() -> tuple[Path, Source]:
        return obtain(cache, folder, OTHER, wanted, tmp_path / "log")

    assert fetch() == (cache / OTHER.tarball, wanted)
    assert fetch() == (cache / OTHER.tarball, wanted)
    assert downloads == [OTHER.version]
    (cache / OTHER.tarball).write_bytes(b"the sour")
    assert fetch() == (cache / OTHER.tarball, wanted)
    assert (cache / OTHER.tarball).read_bytes() == b"the source"
    assert downloads == [OTHER.version] * 2


def test_a_tarball_that_stands_in_is_not_kept(downloads: list[str], tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"a newer source")
    folder = tmp_path / "building"
    folder.mkdir()
    tarball, found = obtain(tmp_path, folder, OTHER, Source("0", "00"), tmp_path / "log")
    assert tarball == folder / OTHER.tarball
    assert found.sha256 == hash_file(tarball)
    assert not (tmp_path / OTHER.tarball).exists()
