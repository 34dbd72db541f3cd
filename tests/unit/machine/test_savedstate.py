# SPDX-License-Identifier: MIT
"""The host's state is found in what holds it, and told in words; what is none is one clear line."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from emulator.cli import app
from emulator.machine import savedstate, statefile
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.snapshot import SnapshotError
from tests.unit.bus.rig import Rig

CONFIG = HostConfig("vm", (DeviceConfig("probe", "probe"),))


def host_state() -> bytes:
    """A host's state whose bus has a guest with an open channel."""
    state = msgspec.msgpack.decode(VmbusHost(CONFIG).save())
    rig = Rig()
    rig.connected(1, 2)
    rig.opened(1)
    state["bus"] = msgspec.to_builtins(rig.bus.save(), builtin_types=(bytes,))
    rig.close()
    return msgspec.msgpack.encode(state)


STATE = host_state()


def section(state: bytes, *, crc: int | None = None, version: int = 1) -> bytes:
    """What QEMU writes for the device."""
    crc = zlib.crc32(state) if crc is None else crc
    return b"\x0avmbus-user" + struct.pack(">IIII", 0, version, len(state), crc) + state


def show(path: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["state", "show", str(path), *options])
    assert "Traceback" not in done.output
    return done.exit_code, done.output


def stream(tmp_path: Path, *pieces: bytes) -> Path:
    path = tmp_path / "machine.state"
    path.write_bytes(b"QEVM" + b"".join(pieces) + b'{"name": "vmbus-user"}')
    return path


def test_it_is_found_among_what_looks_like_it(tmp_path: Path) -> None:
    ram = b"\x0avmbus-user of a guest" + section(b"not this", crc=1)
    path = stream(tmp_path, ram, section(STATE), b"\x0avmbus-user")
    assert savedstate.read_state(path) == STATE
    assert savedstate.read_state(tmp_path) == STATE


def test_the_file_of_a_backend_is_read_as_well(tmp_path: Path) -> None:
    statefile.write(tmp_path / "state", STATE)
    assert savedstate.read_state(tmp_path / "state") == STATE
    damaged = (tmp_path / "state").read_bytes()[:-1]
    (tmp_path / "state").write_bytes(damaged)
    with pytest.raises(SnapshotError, match="is damaged"):
        savedstate.read_state(tmp_path / "state")


def test_it_is_told_in_words(tmp_path: Path) -> None:
    status, text = show(stream(tmp_path, section(STATE)))
    assert status == 0
    for words in (
        f"VM vm: {len(STATE)} bytes of state, version 1",
        "VMBus 5.3, accepted; messages to VP 0, SINT 2; offers requested",
        "open",
        "probe (probe)",
        "nothing in use",
    ):
        assert words in text


def test_json_has_all_of_it(tmp_path: Path) -> None:
    status, text = show(stream(tmp_path, section(STATE)), "--json")
    assert status == 0
    shown = json.loads(text)
    assert shown["vm"] == "vm"
    assert [channel["state"] for channel in shown["bus"]["channels"]] == ["open", "closed"]
    (device,) = shown["devices"]
    assert device["channels"]["data"]["channel"]["packets"] == 0
    assert bytes.fromhex(device["own"])


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((b"nothing",), "has no state of a VMBus host in it"),
        ((section(STATE, crc=5),), "the VMBus host's state in it is damaged"),
        ((section(STATE)[:-40],), "the VMBus host's state in it is damaged"),
        ((section(b"\x80"),), "the VMBus state cannot be read"),
        ((section(b"\xa1\xff"),), "the VMBus state cannot be read"),
    ],
)
def test_what_is_none_is_refused_in_one_line(
    tmp_path: Path, pieces: tuple[bytes, ...], words: str
) -> None:
    status, text = show(stream(tmp_path, *pieces))
    assert status == 1
    assert words in text
    assert len(text.strip().splitlines()) == 1


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    assert "No such file" in show(tmp_path / "nowhere")[1]
    (tmp_path / "empty").touch()
    assert "is empty" in show(tmp_path / "empty")[1]


def test_a_channel_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    state = msgspec.msgpack.decode(STATE)
    state["devices"][0]["channels"]["data"] = [b"garbage"]
    path = stream(tmp_path, section(msgspec.msgpack.encode(state)))
    status, text = show(path)
    assert status == 0
    assert "cannot be read: chunk 0" in text
    assert "cannot be read" not in show(path, "--json")[1]
    assert json.loads(show(path, "--json")[1])["devices"][0]["channels"]["data"]["error"]
