# SPDX-License-Identifier: MIT
"""Manifests: flipped bytes are noticed, differences named, nothing half-written is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.machine.config import Accel, DeviceConfig
from emulator.machine.snapshot import (
    MANIFEST,
    STATE,
    Draft,
    FileEntry,
    Machine,
    Manifest,
    SnapshotError,
    check_machine,
    damage,
    file_entry,
    read_manifest,
)

MACHINE = Machine("vm", 2, 512, Accel.TCG, True, (DeviceConfig("probe", "probe"),))


def write(folder: Path, state: bytes = b"state" * 100) -> Path:
    with Draft(folder) as draft:
        (draft.path / STATE).write_bytes(state)
        draft.publish(
            Manifest(
                format=1,
                created="2026-01-01T00:00:00+00:00",
                tool="0",
                qemu="QEMU 10.0.13",
                machine=MACHINE,
                kernel=FileEntry(1, "aa"),
                initramfs=FileEntry(2, "bb"),
                files={STATE: file_entry(draft.path / STATE)},
            )
        )
    return folder


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "snapshot")
    manifest = read_manifest(folder)
    assert manifest.machine == MACHINE
    assert damage(folder, manifest) == ""
    check_machine(manifest, MACHINE, "QEMU 10.0.13")
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_every_flipped_bit_of_the_manifest_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "snapshot"
    if not folder.exists():
        write(folder)
    path = folder / MANIFEST
    good = path.read_bytes()
    where = data.draw(st.integers(0, len(good) - 1))
    bit = data.draw(st.integers(0, 7))
    bad = bytearray(good)
    bad[where] ^= 1 << bit
    path.write_bytes(bad)
    try:
        if bytes(bad).split() != good.split():
            with pytest.raises(SnapshotError):
                read_manifest(folder)
    finally:
        path.write_bytes(good)


@given(st.integers(0, 499), st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_every_flipped_bit_of_the_state_is_noticed(tmp_path: Path, where: int, bit: int) -> None:
    folder = tmp_path / "snapshot"
    if not folder.exists():
        write(folder)
    state = bytearray(b"state" * 100)
    state[where] ^= 1 << bit
    (folder / STATE).write_bytes(state)
    assert "damaged" in damage(folder, read_manifest(folder))


@pytest.mark.parametrize("name", [MANIFEST, STATE])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "snapshot")
    (folder / name).unlink()
    with pytest.raises(SnapshotError, match=name):
        read_manifest(folder)


def test_a_truncated_state_is_named_with_its_size(tmp_path: Path) -> None:
    folder = write(tmp_path / "snapshot")
    (folder / STATE).write_bytes(b"short")
    with pytest.raises(SnapshotError, match="5 bytes instead of 500"):
        read_manifest(folder)


def test_all_differences_are_told_at_once(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "snapshot"))
    other = Machine("other", 4, 512, Accel.KVM, True, ())
    with pytest.raises(SnapshotError) as caught:
        check_machine(manifest, other, "QEMU 9")
    text = str(caught.value)
    for word in ("name: vm", "smp: 2", "accel: tcg", "devices:", "qemu: QEMU 10.0.13"):
        assert word in text
    assert "memory_mib" not in text


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    with pytest.raises(SnapshotError, match="exists"):
        Draft(tmp_path / "snapshot")


def test_an_abandoned_draft_leaves_nothing(tmp_path: Path) -> None:
    with Draft(tmp_path / "snapshot") as draft:
        (draft.path / STATE).write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
