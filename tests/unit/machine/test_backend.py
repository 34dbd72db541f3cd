# SPDX-License-Identifier: MIT
"""The backend process: VMs that cannot reach each other, sockets, and what SIGTERM keeps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from emulator.machine import statefile
from emulator.machine.control import ControlClient
from emulator.machine.report import Host
from emulator.machine.sockets import listen
from emulator.model.guest import PAGE, u32, u64
from tests.model.machine import ModelMachine, echo_request
from tests.unit.machine.test_inspect import DATA_OFFER

Start = Callable[..., Awaitable["Running"]]


class Running:
    """A backend process that is ready."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.machines: list[ModelMachine] = []

    def connect(self, name: str, pages: int = 2048) -> ModelMachine:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.folder / f"{name}.sock"))
        machine = ModelMachine(sock, pages=pages)
        self.machines.append(machine)
        return machine

    async def report(self, name: str, channel: int | None = None) -> Host:
        client = await ControlClient.connect(self.folder / f"{name}.control")
        try:
            return msgspec.convert(await client.call("inspect", channel=channel), Host)
        finally:
            await client.close()

    async def terminate(self) -> tuple[int, str]:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@pytest_asyncio.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    running: list[Running] = []

    async def start(*args: str, launcher: str = "", fds: tuple[int, ...] = ()) -> Running:
        notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        address = tmp_path / f"notify-{len(running)}"
        notified.bind(str(address))
        program = ["-c", launcher] if launcher else ["-m", "emulator.machine"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *program,
            *args,
            stderr=PIPE,
            pass_fds=fds,
            env=os.environ | {"NOTIFY_SOCKET": str(address)},
        )
        running.append(Running(process, tmp_path))
        with notified:
            ready = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(notified, 100))
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not ready.done():
                ready.cancel()
                assert process.stderr is not None
                raise AssertionError((await process.stderr.read()).decode())
            assert ready.result() == b"READY=1"
        return running[-1]

    yield start
    for backend in running:
        for machine in backend.machines:
            machine.close()
        if backend.process.returncode is None:
            backend.process.kill()
        await backend.process.communicate()


def config(folder: Path, *names: str, **more: object) -> str:
    """Write the configuration of VMs with a probe each; returns its path."""
    vms = [
        {
            "vm": name,
            "devices": [{"name": "probe", "kind": "probe"}],
            "socket_path": str(folder / f"{name}.sock"),
            "control_path": str(folder / f"{name}.control"),
            **more,
        }
        for name in names
    ]
    path = folder / "backend.json"
    path.write_text(json.dumps({"vms": vms}))
    return str(path)


@pytest.mark.asyncio
async def test_two_vms_at_the_same_addresses_are_two_memories(tmp_path: Path, start: Start) -> None:
    backend = await start("--config", config(tmp_path, "one", "two"))
    one, two = backend.connect("one"), backend.connect("two")
    await one.boot()
    await two.boot()
    opened = [await machine.open(machine.channel_with(DATA_OFFER)) for machine in (one, two)]
    # The same page numbers, so that a mix-up would show.
    assert opened[0].gpadl.pfns == opened[1].gpadl.pfns
    before = bytes(two.guest.ram)
    for number in range(1, 20):
        assert (await one.ask(opened[0], echo_request(number, number))).transaction_id == number
    assert bytes(two.guest.ram) == before
    assert (await two.ask(opened[1], echo_request(77, 5))).transaction_id == 77
    assert (await backend.report("one")).channels[0].counters.packets_in == 19
    assert (await backend.report("two")).channels[0].counters.packets_in == 1


@pytest.mark.asyncio
async def test_a_vm_cannot_name_memory_that_only_the_other_has(
    tmp_path: Path, start: Start
) -> None:
    backend = await start("--config", config(tmp_path, "small", "large"))
    small, large = backend.connect("small", pages=1024), backend.connect("large", pages=4096)
    await large.boot()
    await small.boot()
    before = bytes(large.guest.ram)
    # Pages that exist in the other machine; none of this one's, so nothing of it changes either.
    pfns = list(range(2000, 2008))
    channel_id = small.channel_with(DATA_OFFER)
    gpadl = small.guest.gpadl_begin(channel_id, 8, ranges=[u32(8 * PAGE, 0) + u64(*pfns)])
    await small.until(lambda: gpadl.state == "created")
    small.guest.open_channel(channel_id, gpadl.gpadl_id, split=4)
    await small.until(lambda: not small.guest.channels[channel_id].opening)
    assert not small.guest.channels[channel_id].is_open
    assert bytes(large.guest.ram) == before
    report = await backend.report("small")
    assert "bad ring" in report.last_guest_errors[-1]


@pytest.mark.asyncio
async def test_a_vm_that_fails_leaves_the_other_alone(tmp_path: Path, start: Start) -> None:
    backend = await start("--config", config(tmp_path, "bad", "good"))
    bad, good = backend.connect("bad"), backend.connect("good")
    await good.boot()
    opened = await good.open(good.channel_with(DATA_OFFER))
    await bad.boot()
    broken = await bad.open(bad.channel_with(DATA_OFFER))
    # Its guest breaks a ring, then its frontend speaks nonsense and is cut off.
    broken.up.control[0] = 0xFFFFFFFF
    bad.ring_doorbell(broken.channel_id)
    assert (await good.ask(opened, echo_request(1))).transaction_id == 1
    assert (await backend.report("bad", broken.channel_id)).channels[0].faults
    bad.frontend.send_raw(b"\xff" * 64)
    with pytest.raises(EOFError):
        await bad.until(lambda: False)
    assert (await good.ask(opened, echo_request(2))).transaction_id == 2
    # And it may come back.
    again = backend.connect("bad")
    await again.boot()
    assert (await good.ask(opened, echo_request(3))).transaction_id == 3
    assert not (await backend.report("good", opened.channel_id)).channels[0].faults


@pytest.mark.asyncio
async def test_a_second_frontend_for_a_vm_is_sent_away(tmp_path: Path, start: Start) -> None:
    backend = await start("--config", config(tmp_path, "vm"))
    first = backend.connect("vm")
    await first.boot()
    second = backend.connect("vm")
    with pytest.raises(EOFError):
        await second.frontend.read()
    opened = await first.open(first.channel_with(DATA_OFFER))
    await first.ask(opened, echo_request(1))


@pytest.mark.asyncio
async def test_sigterm_ends_it_at_once_and_removes_its_sockets(
    tmp_path: Path, start: Start
) -> None:
    backend = await start("--config", config(tmp_path, "one", "two"))
    machine = backend.connect("one")
    await machine.boot()
    assert os.listdir(tmp_path / "vmbus")
    status, _ = await backend.terminate()
    assert status == 0
    with pytest.raises(EOFError):
        await machine.until(lambda: False)
    assert not {"one.sock", "two.sock", "one.control"} & set(os.listdir(tmp_path))
    assert os.listdir(tmp_path / "vmbus") == []


@pytest.mark.asyncio
async def test_state_is_kept_over_sigterm_and_the_guest_is_not(
    tmp_path: Path, start: Start
) -> None:
    state = tmp_path / "state"
    backend = await start("--config", config(tmp_path, "vm"), "--state", str(state))
    machine = backend.connect("vm")
    await machine.boot()
    opened = await machine.open(machine.channel_with(DATA_OFFER))
    # Packets in the ring at that moment are the guest's loss, as with any reset.
    opened.writer.put(echo_request(1))
    status, _ = await backend.terminate()
    assert status == 0
    assert state.stat().st_mode & 0o777 == 0o600
    assert statefile.read(state)

    again = await start("--config", config(tmp_path, "vm"), "--state", str(state))
    report = await again.report("vm")
    assert [channel.state for channel in report.channels] == ["released", "released"]
    machine = again.connect("vm")
    await machine.boot()
    opened = await machine.open(machine.channel_with(DATA_OFFER))
    assert (await machine.ask(opened, echo_request(2))).transaction_id == 2
    assert f"goes on from {state}" in (await again.terminate())[1]


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["damaged", "of another machine", "no state"])
async def test_a_state_that_does_not_fit_is_set_aside(
    tmp_path: Path, start: Start, how: str
) -> None:
    state = tmp_path / "state"
    backend = await start("--config", config(tmp_path, "vm"), "--state", str(state))
    await backend.terminate()
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    name = "vm"
    match how:
        case "damaged":
            state.write_bytes(data)
        case "of another machine":
            name = "other"
        case _:
            state.write_bytes(b"whatever")
    kept = state.read_bytes()
    again = await start("--config", config(tmp_path, name), "--state", str(state))
    await again.connect(name).boot()
    status, err = await again.terminate()
    assert status == 0
    assert "starts without its state" in err
    assert (tmp_path / "state.refused").read_bytes() == kept
    assert statefile.read(state)


@pytest.mark.asyncio
async def test_a_state_that_cannot_be_kept_is_said_and_is_the_status(
    tmp_path: Path, start: Start
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    backend = await start("--config", config(tmp_path, "vm"), "--state", str(folder / "state"))
    folder.rmdir()
    status, err = await backend.terminate()
    assert status == 1
    assert "the state was not kept" in err


@pytest.mark.asyncio
async def test_a_connected_descriptor_is_served_until_it_ends(tmp_path: Path, start: Start) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        backend = await start(f"--fd={theirs.fileno()}", fds=(theirs.fileno(),))
    machine = ModelMachine(ours)
    backend.machines.append(machine)
    await machine.boot()
    machine.frontend._sock.shutdown(socket.SHUT_RDWR)
    assert await backend.process.wait() == 0


LAUNCHER = """
import os, sys
first = int(sys.argv.pop(1)), int(sys.argv.pop(1))
for number, fd in enumerate(first, 3):
    os.dup2(fd, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": sys.argv.pop(1)}
os.execv(sys.executable, [sys.executable, "-m", "emulator.machine", *sys.argv[1:]])
"""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("names", "fds"),
    [
        (("vm",), "vmbus.socket:control"),
        (("one", "two"), "two:one"),
    ],
)
async def test_sockets_of_a_service_manager(
    tmp_path: Path, start: Start, names: tuple[str, ...], fds: str
) -> None:
    path = tmp_path / "backend.json"
    vms = [{"vm": name, "devices": [{"name": "probe", "kind": "probe"}]} for name in names]
    path.write_text(json.dumps({"vms": vms}))
    # Far from 3 and 4, onto which they are moved.
    sockets = [listen(tmp_path / f"{number}.sock") for number in range(2)]
    copies = [[os.dup(sock.fileno()) for _ in range(8)] for sock in sockets]
    numbers = [several[-1] for several in copies]
    backend = await start(
        *map(str, numbers), fds, "--config", str(path), launcher=LAUNCHER, fds=tuple(numbers)
    )
    served = 1 if len(names) == 1 else 2
    for number in range(served):
        machine = backend.connect(str(number))
        await machine.boot()
    (tmp_path / "vm.control").symlink_to(tmp_path / "1.sock")
    if len(names) == 1:
        assert (await backend.report("vm")).connected
    status, _ = await backend.terminate()
    assert status == 0
    # They are not ours: the next backend gets them, and QEMU connects meanwhile.
    assert (tmp_path / "0.sock").exists()
    for sock, several in zip(sockets, copies, strict=True):
        sock.close()
        for number in several:
            os.close(number)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no socket for QEMU"),
        (("--fd=0", "--socket-path=x"), "choose one"),
        (("--fd=1000000",), "--fd 1000000 is not a socket"),
        (("--config=/nowhere",), "/nowhere: No such file"),
        (("--config={bad}",), "unknown field `quota` - at `$.vms[0]`"),
        (("--config={twice}",), "VM names must differ: a"),
        (("--config={two}", "--socket-path=x"), "--socket-path is for one VM"),
        (("--config={kind}", "--socket-path=x"), "unknown kind 'toaster'"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from emulator.machine.__main__ import main

    files = {
        "bad": '{"vms": [{"vm": "a", "quota": 1}]}',
        "twice": '{"vms": [{"vm": "a"}, {"vm": "a"}]}',
        "two": '{"vms": [{"vm": "a"}, {"vm": "b"}]}',
        "kind": '{"vm": "a", "devices": [{"name": "t", "kind": "toaster"}]}',
    }
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = {name: str(tmp_path / name) for name in files}
    with contextlib.chdir(tmp_path):
        assert main([arg.format(**paths) for arg in args]) == 1
    err = capfd.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_socket()]


def test_capabilities_are_printed_whatever_else_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from emulator.machine.__main__ import main

    assert main(["--fd=99", "--print-capabilities"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["type"] == "vmbus-user"
    assert "state" in printed["features"]
    assert "probe" in printed["devices"]


def test_several_machines_in_one_loop_do_not_poll_unless_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulator.machine.program import Options, gather

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = Path(config(tmp_path, "one", "two"))
    with contextlib.ExitStack() as stack:
        vms = gather(Options(config=path), {}, stack)
        assert [vm.config.poll_us for vm in vms] == [0, 0]
    config(tmp_path, "one", "two", poll_us=50)
    with contextlib.ExitStack() as stack:
        vms = gather(Options(config=path), {}, stack)
        assert [vm.config.poll_us for vm in vms] == [50, 50]


def test_a_toml_file_serves_as_well(tmp_path: Path) -> None:
    from emulator.machine.program import Options, gather

    path = tmp_path / "backend.toml"
    path.write_text(
        f'[[vms]]\nvm = "a"\nsocket_path = "{tmp_path}/a"\ncontrol_path = "{tmp_path}/c"\n'
        '[[vms.devices]]\nname = "p"\nkind = "probe"\n'
    )
    with contextlib.ExitStack() as stack:
        (served,) = gather(Options(config=path), {}, stack)
        assert served.config.devices[0].kind == "probe"
        assert served.config.poll_us is None
        assert (tmp_path / "a").is_socket()
    assert not (tmp_path / "a").exists()
