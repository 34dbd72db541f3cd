# SPDX-License-Identifier: MIT
"""The registry: private, true about what runs, and clear about what does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.machine import registry
from emulator.machine.registry import RegistryError, entries, find, folder, registered


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_the_folder_is_private_and_in_the_runtime_folder(runtime: Path) -> None:
    assert folder() == runtime / "vmbus"
    assert folder().stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_folder_it_is_a_private_one_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert folder() == tmp_path / f"vmbus-{os.geteuid()}"
    assert folder().stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(runtime: Path) -> None:
    (runtime / "vmbus").mkdir()
    (runtime / "vmbus").chmod(0o755)
    with pytest.raises(RegistryError, match="mode 0755"):
        folder()


def test_a_link_in_place_of_the_folder_is_refused(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "vmbus").symlink_to(runtime / "elsewhere")
    with pytest.raises(RegistryError, match="not a folder"):
        folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_another_user_is_refused(runtime: Path) -> None:
    (runtime / "vmbus").mkdir(mode=0o700)
    os.chown(runtime / "vmbus", 12345, 12345)
    with pytest.raises(RegistryError, match="belongs to user 12345"):
        folder()


def test_an_entry_lasts_as_long_as_its_context() -> None:
    with registered("vm", "/somewhere/control"):
        (entry,) = entries()
        assert (entry.name, entry.pid, entry.control) == ("vm", os.getpid(), "/somewhere/control")
        assert find("vm") == find(str(os.getpid())) == entry
    assert entries() == []


@pytest.mark.parametrize("by", ["a look", "the next backend"])
def test_the_entry_of_a_killed_process_is_dropped(runtime: Path, by: str) -> None:
    program = (
        "import os, signal\nfrom emulator.machine.registry import registered\n"
        "with registered('gone', 'control'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert list((runtime / "vmbus").glob("*.json"))
    if by == "a look":
        assert entries() == []
        assert not list((runtime / "vmbus").iterdir())
    else:
        with registered("next", "control"):
            assert len(list((runtime / "vmbus").iterdir())) == 1


def test_a_process_id_that_was_used_again_is_not_the_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with registered("vm", "control"):
        real = registry._started
        monkeypatch.setattr(registry, "_started", lambda pid: real(pid) + 1)
        assert entries() == []


def test_a_wrong_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(RegistryError, match="there is none"):
        find("vm")
    with registered("one", "a"), registered("two", "b"):
        with pytest.raises(RegistryError, match="no VM 'three' is running; there are one, two"):
            find("three")
        with pytest.raises(RegistryError, match=r"serves 2 VMs; name one: one, two"):
            find(str(os.getpid()))


def test_a_name_that_two_have_is_not_guessed_at() -> None:
    with registered("vm", "a"), registered("vm", "b"), pytest.raises(RegistryError, match="by its"):
        find("vm")


def test_what_is_no_entry_is_left_alone(runtime: Path) -> None:
    (folder() / "9-9.json").write_text("{}")
    assert entries() == []
    assert (folder() / "9-9.json").exists()
