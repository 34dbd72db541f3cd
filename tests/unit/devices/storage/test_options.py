# SPDX-License-Identifier: MIT
"""Options of devices: good ones make disks, bad ones one clear line; disks are told apart."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from emulator.devices import DeviceStateError, make_device
from emulator.devices.storage.protocol import IDE_INTERFACE
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from tests.unit.devices.storage.rig import Port, Rig, cdb10

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"luns": [{}]}, r"a disk needs a path, or nbd - at `\$.luns\[0\]`"),
        ({"luns": [{"path": "/x", "null_size": 512}]}, "one of path, nbd and null_size"),
        ({"luns": [{"lun": 64, "path": "/x"}]}, r"`int` < 64|<= 63.*lun"),
        ({"luns": [{"path": "/x", "colour": 1}]}, "unknown field `colour`"),
        ({"luns": [{"path": "/x"}, {"path": "/y"}]}, "LUNs must differ: 0"),
        (
            {"luns": [{"path": "/nowhere/at/all"}]},
            "LUN 0: /nowhere/at/all cannot be opened: No such",
        ),
        ({"luns": [{"path": "/dev/zero"}]}, "neither a file nor a block device"),
        ({"luns": [{"null_size": 100}]}, "not a multiple of 512"),
        ({"luns": [{"path": "/x", "uuid": "no"}]}, "badly formed|UUID"),
        ({"luns": [{"path": "/x", "serial": "a b"}]}, "serial"),
        ({"max_version": "7.0"}, "there is no storage protocol '7.0'; known: 2.0, 4.2, 5.1"),
        ({"sub_channels": 65}, "sub_channels"),
        ({"luns": [{"nbd": "nbd://host/x"}]}, "not of the form nbd.unix:///NAME.socket=PATH"),
        ({"luns": [{"nbd": "nbd+unix:///x?socket=/no/where"}]}, "cannot be opened: No such file"),
        ({"luns": "disk.img"}, "Expected `array`"),
    ],
)
async def test_a_bad_option_is_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DeviceStateError, match=text) as caught:
        make_device("scsi", "disk", "vm", Port(), options)
    assert str(caught.value).startswith("device disk: ")
    assert "\n" not in str(caught.value)


async def test_a_disk_without_a_block_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(b"x" * 511)
    with pytest.raises(DeviceStateError, match="511 bytes, which is not one block"):
        make_device("scsi", "disk", "vm", Port(), {"luns": [{"path": str(empty)}]})


async def test_a_kind_without_options_takes_none() -> None:
    with pytest.raises(DeviceStateError, match="a heartbeat has no options; remove luns"):
        make_device("heartbeat", "h", "vm", Port(), {"luns": []})


async def test_a_host_is_made_with_options_and_refuses_bad_ones() -> None:
    good = DeviceConfig("disk", "scsi", options={"luns": [{"null_size": 4096}]})
    host = VmbusHost(HostConfig("vm", (good,)))
    assert host.devices["disk"].pause_waits_for() == []
    with pytest.raises(DeviceStateError, match="unknown field"):
        VmbusHost(HostConfig("vm", (DeviceConfig("disk", "scsi", options={"lun": []}),)))


async def test_the_ide_accelerator_is_offered_for_its_disk() -> None:
    rig = Rig({"disk": {"null_size": 1 << 20}, "channel": 1, "device": 1}, kind="ide").start()
    (offer,) = rig.port.offers
    assert offer.interface == IDE_INTERFACE
    assert str(offer.instance) == "00000001-0001-8899-0000-000000000000"
    assert struct.unpack("<HBBII", offer.user_defined[:12]) == (0, 1, 1, 0, 2)
    await rig.initialise()
    # The offer says where the disk is; Linux asks at path 0 for either channel.
    for where in ({"path": 1, "target": 1}, {"target": 1}, {}):
        assert (await rig.command(cdb10(0x28, 0, 8), room=4096, **where)).good
        assert (await rig.command(cdb10(0x25), room=8, **where)).good
    assert (await rig.command(cdb10(0x25), room=8, lun=1)).srb_status == 0x20
    for bad in ({"disk": {"null_size": 512, "lun": 1}}, {"disk": {"medium": "dvd"}}):
        with pytest.raises(DeviceStateError, match="one disk, at LUN 0"):
            make_device("ide", "disk", "vm", Port(), bad)


async def test_a_unit_is_the_same_in_every_run_and_another_in_another_machine() -> None:
    def serial(vm: str, **more: Any) -> str:
        options = {"luns": [{"null_size": 4096, **more}]}
        device: Any = make_device("scsi", "disk", vm, Port(), options)
        return str(device.controller.luns[more.get("lun", 0)].unit.identity.serial)

    assert serial("a") == serial("a")
    assert len({serial("a"), serial("b"), serial("a", lun=1)}) == 3
    assert serial("a", serial="S1") == "S1"


async def test_disks_that_are_not_those_of_the_snapshot_are_all_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.img" for n in range(3)]
    for path in paths:
        path.write_bytes(bytes(8192))
    uuids = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(3)]

    def luns(**changes: Any) -> list[dict[str, Any]]:
        return [
            {"lun": n, "path": str(path), "uuid": uuids[n]} | changes.get(f"l{n}", {})
            for n, path in enumerate(paths)
        ]

    rig = await Rig({"luns": luns()}).start().initialise()
    moved = tmp_path / "moved.img"
    moved.write_bytes(bytes(4096))
    paths[2].write_bytes(b"x" * 8192)
    others = luns(l0={"uuid": uuids[1]}, l1={"path": str(moved)})
    with pytest.raises(DeviceStateError) as caught:
        await rig.restored(luns=others)
    text = str(caught.value)
    assert f"LUN 0: this disk is {uuids[1]}, that of the snapshot {uuids[0]}" in text
    assert f"LUN 1: {moved} has 4096 bytes, the disk of the snapshot had 8192" in text


async def test_a_disk_that_was_written_since_is_refused_unless_meant(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    options = {"path": str(path)}
    rig = await Rig({"luns": [options]}).start().initialise()
    state = _saved(rig)
    path.write_bytes(b"x" * 8192)
    for more, fits in (({}, False), ({"allow_changed": True}, True), ({"read_only": True}, True)):
        device: Any = make_device("scsi", "disk", "vm", Port(), {"luns": [options | more]})
        if fits:
            device.restore_own(state)
        else:
            with pytest.raises(DeviceStateError, match="was written after the snapshot was made"):
                device.restore_own(state)


def _saved(rig: Rig) -> bytes:
    return rig.device.save_own()
