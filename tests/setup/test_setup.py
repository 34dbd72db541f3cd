# SPDX-License-Identifier: MIT
"""scripts/setup on machines that lack something, each made for real.

Every failure must be one line on standard error that says what to do, with a non-zero status, and
must leave nothing that the next run takes for finished work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# Nobody listens on the discard port here: a "no network" that needs no privilege. What pip keeps or
# finds beside the network is put out of its reach as well.
NO_NETWORK = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
}
PYTHON_ONLY = ("--no-apt", "--no-qemu", "--no-guest")


@pytest.fixture
def clone(checkout: Path, tmp_path: Path) -> Path:
    """Return a copy of what setting up the Python part reads, free to be spoiled."""
    target = tmp_path / "clone"
    for name in (
        "pyproject.toml",
        "setup.py",
        "requirements.txt",
        "LICENSE",
        "LICENSES",
        "scripts",
    ):
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(source, target / name)
    for package in ("memory", "ring"):
        # Not what was built here: *.so.
        shutil.copytree(
            checkout / "emulator" / package,
            target / "emulator" / package,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
    (target / "emulator/__init__.py").touch()
    return target


def environment(changes: dict[str, str]) -> dict[str, str]:
    """Return this process's environment without settings of pip, a venv or set-up, plus changes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "VMBUS_", "VIRTUAL_ENV", "PYTHON")) and name != "CC"
    }
    return kept | changes


def run(
    clone: Path,
    *arguments: str,
    wrap: tuple[str, ...] = (),
    settings: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup of the clone with no input, wrap before it, settings in its environment."""
    return subprocess.run(
        [*wrap, str(clone / "scripts/setup"), *arguments],
        env=environment(settings or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that set-up ended with one clear line that contains the words."""
    assert result.returncode != 0
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert "ready" not in result.stdout


def path_without(folder: Path, *names: str) -> str:
    """Make a folder that holds every command on PATH except names; returns it as a PATH."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for command in Path(place).glob("*"):
            link = folder / command.name
            if not any(name in command.name for name in names) and not link.is_symlink():
                link.symlink_to(command)
    return str(folder)


@pytest.fixture
def own_namespaces() -> None:
    """Skip where the kernel does not let this user have a mount or a user id of its own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not let this user make user and mount namespaces")


def test_no_compiler(clone: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "gcc")
    refused(run(clone, *PYTHON_ONLY, settings={"PATH": path}), "gcc", "install")
    assert not (clone / ".venv").exists()


def test_no_network_and_the_next_run_starts_over(clone: Path) -> None:
    # What an interrupted run leaves: an environment without the file that is written last.
    leftover = clone / ".venv" / "lib" / "leftover"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    (clone / ".venv/pyvenv.cfg").touch()
    result = run(clone, *PYTHON_ONLY, settings=NO_NETWORK)
    refused(result, "network", "run this again")
    assert "up to date" not in result.stdout
    assert not leftover.exists()
    assert not (clone / ".venv/.requirements").exists()


def test_no_room(clone: Path, tmp_path: Path, own_namespaces: None) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size=16m none "{small}" && exec "$@"'
    result = run(
        clone,
        *PYTHON_ONLY,
        wrap=("unshare", "-rm", "sh", "-c", mount, "sh"),
        settings={"VMBUS_VENV": str(small / "venv")},
    )
    refused(result, str(small), "16 MiB", "make room")


def test_room_runs_out_on_the_way(clone: Path, tmp_path: Path, own_namespaces: None) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f"""
        set -euo pipefail
        mount -t tmpfs -o size=16m none "{small}"
        . "{clone}/scripts/lib.sh"
        long "filling" "{small}" dd if=/dev/zero of="{small}/file" bs=1M
        say ready
    """
    result = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False
    )
    refused(result, "filling", str(small), "no room left")


def test_packages_missing_and_not_allowed_to_install(
    clone: Path, tmp_path: Path, own_namespaces: None
) -> None:
    path = path_without(tmp_path / "bin", "sudo", "dpkg-query")
    empty = tmp_path / "bin/dpkg-query"
    empty.write_text("#!/bin/sh\nexit 1\n")  # what it answers where nothing asked for is installed
    empty.chmod(0o755)
    # Without a mapping this user is nobody to itself, whoever runs the test.
    result = run(clone, wrap=("unshare", "--user"), settings={"PATH": path})
    refused(result, "as root run: apt-get install", "ninja-build", "python3-venv")


def test_a_folder_of_the_users_own_is_not_deleted(clone: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").write_text("years of work")
    result = run(clone, *PYTHON_ONLY, settings={"VMBUS_VENV": str(mine)})
    refused(result, str(mine), "not a Python environment")
    assert (mine / "thesis").read_text() == "years of work"


def test_unknown_argument(clone: Path) -> None:
    result = run(clone, "--qemu")
    assert result.returncode != 0
    assert "usage: scripts/setup" in result.stderr
    assert result.stderr.endswith("error: unknown argument: --qemu\n")


@pytest.mark.slow
def test_the_second_run_changes_nothing_and_a_changed_source_is_built_again(clone: Path) -> None:
    first = run(clone, *PYTHON_ONLY, settings=pip_settings())
    assert first.returncode == 0, first.stderr
    before = (clone / ".venv/.requirements").stat().st_mtime_ns
    second = run(clone, *PYTHON_ONLY, settings=NO_NETWORK)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("up to date") == 2
    assert (clone / ".venv/.requirements").stat().st_mtime_ns == before

    source = clone / "emulator/memory/_native.c"
    good = source.read_text()
    source.write_text(good + "\n#error broken on purpose\n")
    broken = run(clone, *PYTHON_ONLY)
    assert broken.returncode != 0
    assert broken.stderr.splitlines()[-1].startswith("error: ")
    again = run(clone, *PYTHON_ONLY)
    assert again.returncode != 0, "a failed build was taken for a finished one"
    source.write_text(good)
    mended = run(clone, *PYTHON_ONLY)
    assert mended.returncode == 0, mended.stderr
    assert list((clone / "emulator/memory").glob("_native*.so"))


def pip_settings() -> dict[str, str]:
    """Return what this machine tells pip about its index, which environment() leaves out."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
