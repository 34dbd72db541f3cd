# SPDX-License-Identifier: MIT
"""``vmbus trace`` and ``vmbus serve --trace``: real processes and files, and a model guest."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from emulator.machine.control import ControlClient, ControlError
from emulator.trace.dissector import PATH
from emulator.trace.pcapng import Captured, Counts, Reader
from emulator.trace.record import Direction, Event, Kind, Record
from tests.model.machine import ModelMachine, OpenChannel, echo_request
from tests.unit.machine.test_backend import Running, Start, config, start
from tests.unit.machine.test_inspect import DATA_OFFER

__all__ = ["start"]

pytestmark = pytest.mark.asyncio


class Tracer:
    """A ``vmbus trace`` that has printed its first line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def until(self, words: str, times: int = 1) -> list[str]:
        assert self.process.stdout is not None
        lines: list[str] = []
        while sum(words in line for line in lines) < times:
            line = await self.process.stdout.readline()
            assert line, (lines, await self._errors())
            lines.append(line.decode())
        return lines

    async def _errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def end(self, number: int = signal.SIGINT) -> tuple[int | None, str, str]:
        self.process.send_signal(number)
        out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()


async def trace(*args: str, stdout: int = PIPE) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "emulator.cli", "trace", *args, stdout=stdout, stderr=PIPE
    )


async def said(*args: str) -> tuple[int | None, str, str]:
    process = await trace(*args)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def contents(path: Path) -> tuple[list[Record], list[Captured], Counts | None]:
    reader = Reader()
    items = reader.feed(path.read_bytes())
    reader.finish()
    captured = [item for item in items if isinstance(item, Captured)]
    counts = [item for item in items if isinstance(item, Counts)]
    return [Record.parse(i.data) for i in captured], captured, counts[0] if counts else None


async def open_data(machine: ModelMachine) -> OpenChannel:
    await machine.boot()
    return await machine.open(machine.channel_with(DATA_OFFER))


@pytest_asyncio.fixture
async def backend(tmp_path: Path, start: Start) -> AsyncIterator[Running]:
    yield await start("--config", config(tmp_path, "one", "two"))


async def test_a_trace_is_printed_and_written_until_ctrl_c(
    tmp_path: Path, backend: Running
) -> None:
    file = tmp_path / "t.pcapng"
    tracer = Tracer(await trace("one", "--packets", "--write", str(file)))
    await tracer.until("CHANNEL channel 2")
    machine = backend.connect("one")
    opened = await open_data(machine)
    for number in range(1, 11):
        await machine.ask(opened, echo_request(number))
    lines = await tracer.until("COMPLETION channel 1", 10)
    status, rest, err = await tracer.end()
    assert (status, err) == (0, f"{2 + 1 + len(lines + rest.splitlines())} records\n")
    assert any("guest > host  OPEN_CHANNEL channel_id=1" in line for line in lines)
    records, _, counts = contents(file)
    assert counts == Counts(len(records), 0)
    ways = [r.direction for r in records if r.kind is Kind.PACKET]
    assert ways == [Direction.FROM_GUEST, Direction.TO_GUEST] * 10
    assert {r.vm for r in records} == {"one"}
    # It is the user's alone, and reads back as it was printed.
    assert file.stat().st_mode & 0o777 == 0o600
    status, out, err = await said("--read", str(file))
    assert (status, err) == (0, "")
    assert "".join(lines) in out
    # The backend has let go of the rings, and serves on.
    assert (await machine.ask(opened, echo_request(99))).transaction_id == 99


async def test_standard_output_can_be_the_file(tmp_path: Path, backend: Running) -> None:
    process = await trace("two", "--write", "-")
    assert process.stdout is not None
    data = await process.stdout.readexactly(100)
    await open_data(backend.connect("two"))
    # Each record has the name of its VM. SIGTERM ends it as Ctrl-C does.
    while data.count(b"two") < 15:
        data += await process.stdout.read(1 << 16)
    process.send_signal(signal.SIGTERM)
    rest, err = await process.communicate()
    assert process.returncode == 0
    (tmp_path / "t").write_bytes(data + rest)
    records, _, counts = contents(tmp_path / "t")
    assert err.decode() == f"{len(records)} records\n"
    assert counts == Counts(len(records), 0)
    assert all(record.kind is not Kind.PACKET for record in records)


async def test_whoever_reads_our_pipe_may_go_away(backend: Running) -> None:
    ours, theirs = os.pipe()
    process = await trace("one", "--write", "-", stdout=theirs)
    os.close(theirs)
    os.close(ours)
    machine = backend.connect("one")
    await open_data(machine)
    _, err = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in err


async def test_a_trace_that_is_stuck_can_be_ended(tmp_path: Path, backend: Running) -> None:
    ours, theirs = os.pipe()
    process = await trace("one", "--packets", "--write", "-", stdout=theirs)
    os.close(theirs)
    machine = backend.connect("one")
    opened = await open_data(machine)
    # The first bytes say that it follows; the rest is more than the pipe takes.
    await asyncio.to_thread(os.read, ours, 16)
    for _ in range(100):
        await machine.ask(opened, big_request())
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = await process.communicate()
    os.close(ours)
    assert process.returncode == 130
    assert b"Traceback" not in err


def big_request() -> bytes:
    """Return an echo request with 4,000 bytes beside its own."""
    small = echo_request(1)
    length8 = len(small) // 8 + 500
    return small[:4] + length8.to_bytes(2, "little") + small[6:] + bytes(4000)


async def test_a_reader_that_takes_nothing_holds_up_nobody(
    tmp_path: Path, backend: Running
) -> None:
    tracer = Tracer(await trace("one", "--packets", "--write", str(tmp_path / "t")))
    # Nobody reads what it prints until the end, so it gets stuck there.
    await tracer.until("CHANNEL channel 2")
    machine = backend.connect("one")
    opened = await open_data(machine)
    # This one reads nothing at all. Meanwhile 24 MiB pass, more than there is room for.
    _, writer = await follow(tmp_path / "one.control")
    before = await peak(backend)
    rounds = 3000
    for _ in range(rounds):
        await machine.ask(opened, big_request())
    assert (await backend.report("one")).channels[0].counters.packets_in == rounds
    assert await peak(backend) - before < 12 << 10
    status, _, err = await tracer.end()
    # It took all, or was told what it did not.
    assert status == 0
    records, captured, counts = contents(tmp_path / "t")
    assert counts is not None
    kept = sum(record.kind is Kind.PACKET for record in records)
    lost = sum(item.dropped for item in captured)
    assert kept + lost == 2 * rounds
    assert counts.dropped == lost
    assert err.startswith(f"{counts.received - lost} records")
    writer.close()
    await writer.wait_closed()


async def follow(control: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a trace, and read only what is asked for."""
    reader, writer = await asyncio.open_unix_connection(control, limit=1 << 16)
    request = {"id": 1, "command": "trace", "args": {"packets": True}}
    writer.write(json.dumps(request).encode() + b"\n")
    assert json.loads(await reader.readline())["result"] == {"vm": "one"}
    return reader, writer


async def peak(backend: Running) -> int:
    """Return the backend's peak memory beside guest RAM, in KiB."""
    return (await backend.report("one")).peak_private_kib


async def test_a_reader_that_was_too_slow_is_told(tmp_path: Path, backend: Running) -> None:
    machine = backend.connect("one")
    opened = await open_data(machine)
    reader, writer = await follow(tmp_path / "one.control")
    for _ in range(1500):
        await machine.ask(opened, big_request())
    # Only now it reads: what waited, and how much did not.
    writer.write_eof()
    data = await reader.read()
    (tmp_path / "t").write_bytes(data)
    records, captured, counts = contents(tmp_path / "t")
    assert counts is not None
    assert counts.dropped == sum(item.dropped for item in captured) > 0
    assert counts.received == counts.dropped + sum(r.kind is not Kind.NOTE for r in records)
    assert len(data) < 6 << 20
    writer.close()
    await writer.wait_closed()
    status, out, err = await said("--read", str(tmp_path / "t"))
    assert status == 0
    assert f"NOTE {counts.dropped} records were dropped" in out
    assert err == f"{counts.dropped} records were dropped when it was written\n"


async def test_a_trace_of_the_whole_run(tmp_path: Path, start: Start) -> None:
    file = tmp_path / "all.pcapng"
    backend = await start("--config", config(tmp_path, "one", trace=str(file), trace_packets=True))
    machine = backend.connect("one")
    opened = await open_data(machine)
    await machine.ask(opened, echo_request(7))
    status, err = await backend.terminate()
    assert status == 0, err
    records, _, counts = contents(file)
    assert counts == Counts(len(records), 0)
    assert file.stat().st_mode & 0o777 == 0o600
    messages = [int.from_bytes(r.body[:4], "little") for r in records if r.kind is Kind.MESSAGE]
    assert messages[:3] == [14, 15, 3]
    assert sum(record.kind is Kind.PACKET for record in records) == 2
    assert records[-1].kind is Kind.EVENT
    ended = [r.event for r in records if r.kind is Kind.EVENT]
    assert {Event.STOPPED, Event.QEMU_GONE, Event.CHANNEL_CLOSED} <= set(ended)


async def test_a_backend_that_ends_ends_its_traces(tmp_path: Path, backend: Running) -> None:
    tracer = Tracer(await trace("one", "--write", str(tmp_path / "t")))
    await tracer.until("CHANNEL channel 2")
    await open_data(backend.connect("one"))
    await backend.terminate()
    out, err = await tracer.process.communicate()
    assert tracer.process.returncode == 0, err
    records, _, counts = contents(tmp_path / "t")
    assert counts == Counts(len(records), 0)
    assert {Event.STOPPED, Event.QEMU_GONE} <= {record.event for record in records}
    assert "QEMU_GONE" in out.decode()


async def test_a_file_that_cannot_be_written_ends_the_trace_alone(
    tmp_path: Path, start: Start
) -> None:
    backend = await start("--config", config(tmp_path, "one", trace="/dev/full"))
    machine = backend.connect("one")
    opened = await open_data(machine)
    assert (await machine.ask(opened, echo_request(7))).transaction_id == 7
    status, err = await backend.terminate()
    assert status == 0
    assert "the trace ends, /dev/full: No space left on device" in err


async def test_mistakes_are_answered_with_one_line(tmp_path: Path, backend: Running) -> None:
    (tmp_path / "text").write_text("text that is no capture file at all")
    for args, words in (
        ((), "which VM?"),
        (("three",), "no VM 'three' is running; there are one, two"),
        (("one", "--channel", "9"), "one has no channel 9; its channels: 1, 2"),
        (("one", "--limit", "3"), "16 to"),
        (("one", "--quiet"), "--quiet leaves nothing to do"),
        (("one", "--write", str(tmp_path / "no" / "file")), "No such file or directory"),
        (("one", "--read", str(tmp_path / "text")), "takes neither VM nor other options"),
        (("--read", str(tmp_path / "text")), "does not begin as a pcapng file does"),
        (("--read", str(tmp_path / "nothing")), "nothing: No such file"),
    ):
        status, out, err = await said(*args)
        assert (status, out, err.count("\n")) == (1, "", 1), (args, err)
        assert words in err
    client = await ControlClient.connect(tmp_path / "one.control")
    with pytest.raises(ControlError, match="unknown field"):
        await client.call("trace", everything=True)
    await client.close()


async def test_the_path_of_the_dissector_is_told() -> None:
    status, out, _ = await said("--dissector")
    assert status == 0
    assert Path(out.strip()) == PATH
