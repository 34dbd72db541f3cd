# SPDX-License-Identifier: MIT
"""The folder of a machine: one run at a time, and what becomes of its snapshots."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from emulator.machine.config import Accel
from emulator.machine.snapshot import MANIFEST, Machine, Manifest
from emulator.machine.store import MachineStore, StoreError, state_root


def keep(store: MachineStore, name: str, created: str) -> Path:
    folder = store.snapshot(name)
    folder.mkdir(parents=True)
    machine = Machine("vm", 1, 512, Accel.TCG, True, ())
    manifest = Manifest(1, created, "tool", "qemu", machine, None, None, {})
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest.sealed()))
    return folder


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "-rf", "a" * 65, "a b"])
def test_a_name_that_would_leave_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a name has"):
        MachineStore(name, tmp_path)
    with pytest.raises(StoreError, match="a name has"):
        MachineStore("vm", tmp_path).snapshot(name)


def test_one_process_runs_a_machine_at_a_time(tmp_path: Path) -> None:
    with MachineStore("vm", tmp_path).running():
        with (
            pytest.raises(StoreError, match="runs already"),
            MachineStore("vm", tmp_path).running(),
        ):
            pass
        with MachineStore("other", tmp_path).running():
            pass
    with MachineStore("vm", tmp_path).running():
        pass


def test_a_run_begins_with_empty_logs(tmp_path: Path) -> None:
    store = MachineStore("vm", tmp_path)
    with store.running():
        (store.logs / "qemu.log").write_text("old")
    with store.running():
        assert list(store.logs.iterdir()) == []


def test_snapshots_are_listed_oldest_first_and_damaged_ones_with_the_reason(
    tmp_path: Path,
) -> None:
    store = MachineStore("vm", tmp_path)
    assert store.snapshots() == []
    keep(store, "b", "2026-01-01")
    keep(store, "a", "2026-01-02")
    (keep(store, "0", "2025-01-01") / MANIFEST).write_text("{}")
    found = store.snapshots()
    assert [kept.name for kept in found] == ["b", "a", "0"]
    assert "damaged" in found[2].problem


def test_a_snapshot_is_removed_and_a_wrong_name_says_which_there_are(tmp_path: Path) -> None:
    store = MachineStore("vm", tmp_path)
    folder = keep(store, "one", "2026-01-01")
    with pytest.raises(StoreError, match="no snapshot 'two'; there is: one"):
        store.remove("two")
    store.remove("one")
    assert not folder.exists()


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="too long for a socket"):
        _ = MachineStore("v" * 60, tmp_path / ("x" * 60)).control


def test_the_state_folder_is_that_of_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_root() == tmp_path / "vmbus"
    # The specification has a relative path ignored.
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_root() == tmp_path / "home/.local/state/vmbus"
