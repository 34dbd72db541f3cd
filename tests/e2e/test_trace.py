# SPDX-License-Identifier: MIT
"""``vmbus trace`` of a real guest: what Linux and the host say to each other, read by Wireshark."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from emulator.machine.control import ControlClient
from emulator.machine.process import Child
from emulator.machine.qemu import Sockets
from emulator.machine.sockets import listen
from emulator.machine.vm import VirtualMachine
from emulator.trace.pcapng import Captured, Counts, Reader
from emulator.trace.record import Direction, Kind, Record
from emulator.wire.message import MessageType
from emulator.wire.packet import PacketType
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.unit.trace.shark import dissected

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120


class TracedMachine(VirtualMachine):
    """A machine whose backend is ``vmbus serve --trace``."""

    trace: Path

    async def _spawn_backend(self, sockets: Sockets) -> None:
        vmbus, control = listen(sockets.vmbus), listen(sockets.control, 0o600)
        args = [sys.executable, "-m", "emulator.cli", "serve", f"--fd={vmbus.fileno()}"]
        args += [f"--control-fd={control.fileno()}", f"--vm={self.config.name}"]
        args += ["--device=probe", f"--trace={self.trace}", "--trace-packets"]
        with vmbus, control:
            fds = vmbus.fileno(), control.fileno()
            self.backend_child = await Child.start(
                "vmbus serve", args, self._logs / "serve.log", fds
            )
        self._control = await ControlClient.connect(sockets.control)


async def _converse(vm: VirtualMachine) -> None:
    await vm.control("probe.ready")
    await vm.control("probe.run")
    await vm.control("probe.wait", requests=50, completions=30)


def _contents(path: Path) -> tuple[list[Record], Counts]:
    reader = Reader()
    items = reader.feed(path.read_bytes())
    reader.finish()
    (counts,) = [item for item in items if isinstance(item, Counts)]
    return [Record.parse(item.data) for item in items if isinstance(item, Captured)], counts


def _values(frames: list[dict[str, list[str]]], name: str) -> list[int]:
    return [int(frame[name][0], 0) for frame in frames if name in frame]


async def test_a_boot_and_a_conversation_from_the_first_message(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path
) -> None:
    vm = TracedMachine(make_config(name="traced"), qemu=qemu, logs=tmp_path / "logs")
    vm.trace = tmp_path / "boot.pcapng"
    async with vm:
        await vm.boot()
        async with asyncio.timeout(PATIENCE):
            await _converse(vm)
            # Packets of every kind stand in the rings then.
            await vm.control("probe.freeze")
            report = await vm.control("inspect")
            await vm.control("probe.thaw")
            assert (await vm.control("probe.finish"))["problems"] == []
        counted = {
            key: sum(c["counters"][key] for c in report["channels"])
            for key in ("packets_in", "packets_out")
        }
        child, vm.backend_child = vm.backend_child, None
        assert child is not None
        await child.terminate()
        assert child.ended.result() == 0, child.last_words()
    records, counts = await asyncio.to_thread(_contents, vm.trace)
    assert counts == Counts(len(records), 0)
    frames = await asyncio.to_thread(dissected, vm.trace, "-2")
    assert len(frames) == len(records)
    assert not any("vmbus.malformed" in frame for frame in frames)

    types = _values(frames, "vmbus.message_type")
    handshake = [MessageType.INITIATE_CONTACT, MessageType.VERSION_RESPONSE]
    assert types[:2] == handshake
    contacts = [frame for frame in frames if "vmbus.version_requested" in frame]
    assert int(contacts[-1]["vmbus.version_requested"][0], 0) == 0x50003
    for number, count in (
        (MessageType.REQUEST_OFFERS, 1),
        (MessageType.OFFER_CHANNEL, 2),
        (MessageType.ALL_OFFERS_DELIVERED, 1),
        (MessageType.GPADL_HEADER, 2),
        (MessageType.GPADL_CREATED, 2),
        (MessageType.OPEN_CHANNEL, 2),
        (MessageType.OPEN_RESULT, 2),
    ):
        assert types.count(number) == count, number.name
    offers = [f for f in frames if _values([f], "vmbus.message_type") == [1]]
    assert {f["vmbus.instance_id"][0] for f in offers} == {
        channel["instance"] for channel in report["channels"]
    }
    # The ring's pages are named by the guest: as many as its GPADL says.
    pages = [f["vmbus.gpa_range.pfn"] for f in frames if _values([f], "vmbus.message_type") == [8]]
    assert all(len(pfns) >= 4 for pfns in pages)

    packets = [frame for frame in frames if "vmbus.packet.type" in frame]
    for direction, key in (
        (Direction.FROM_GUEST, "packets_in"),
        (Direction.TO_GUEST, "packets_out"),
    ):
        there = [frame for frame in packets if _values([frame], "vmbus.direction") == [direction]]
        assert len(there) >= counted[key] > 50
        kinds = set(_values(there, "vmbus.packet.type"))
        assert kinds >= {PacketType.IN_BAND, PacketType.COMPLETION}
    # Every completion answers a request that was seen before it.
    completions = [f for f in packets if _values([f], "vmbus.packet.type") == [11]]
    assert all("vmbus.request_in" in frame for frame in completions)
    # And is the one that the library reads in the same place.
    bodies = [record.body for record in records if record.kind is Kind.PACKET]
    assert [int.from_bytes(body[8:16], "little") for body in bodies] == _values(
        packets, "vmbus.packet.transaction_id"
    )


async def test_a_running_machine_is_traced_and_not_disturbed(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    vm = await make_vm(make_config(name="running"))
    await vm.boot()
    file = tmp_path / "live.pcapng"
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        args = ("trace", "running", "--packets", "--limit", "64", "--write", str(file))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "emulator.cli", *args, stdout=PIPE, stderr=PIPE
        )
        assert process.stdout is not None
        first = [(await process.stdout.readline()).decode() for _ in range(3)]
        assert "CONNECTION QEMU connected, guest VMBus 5.3" in first[0]
        assert "CHANNEL channel 1 probe/data open" in first[1]
        rest = asyncio.create_task(process.stdout.read())
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)
        assert (await vm.control("probe.finish"))["problems"] == []
        process.send_signal(signal.SIGINT)
        lines = (await rest).decode().splitlines()
        assert await process.wait() == 0
    records, counts = await asyncio.to_thread(_contents, file)
    notes = sum(record.kind is Kind.NOTE for record in records)
    assert counts.received - counts.dropped == len(records) - notes
    assert len(lines) == len(records) - 3
    assert any("guest > host  IN_BAND channel 1" in line for line in lines)
    assert any("host > guest  COMPLETION channel 1" in line for line in lines)
    packets = [record for record in records if record.kind is Kind.PACKET]
    assert len(packets) > 100
    assert max(len(record.body) for record in packets) == 64
    frames = await asyncio.to_thread(dissected, file)
    assert not any("vmbus.malformed" in frame for frame in frames)
    assert any("vmbus.cut" in frame for frame in frames)
