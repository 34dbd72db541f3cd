# SPDX-License-Identifier: MIT
"""The QEMU under test: its process, its QMP, its guest, and what /proc says of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qemu.qmp import ExecuteError, QMPClient, QMPError

from emulator.lab.images import find_image
from emulator.machine.console import Console
from emulator.machine.process import Child
from emulator.machine.qemu import HYPERV_FLAGS
from emulator.machine.sockets import listen

STOP_TIMEOUT_MS: Final = 400
STATE_TIMEOUT_MS: Final = 800
MAX_STATE_SIZE: Final = 1 << 20
TRANSLATED_MIB: Final = 32
"""Size of TCG's buffer: without a limit it grows with the guest, and looks like a leak."""


_REAP_SECONDS: Final = 5.0


class Failure(Exception):
    """The device, or QEMU as a whole, did what it must not do."""


def _data(event: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = event["data"]
    return data


@dataclass(frozen=True, slots=True)
class Guest:
    """What runs in the machine: QEMU's arguments, and a line it prints as long as it lives."""

    args: tuple[str, ...]
    tick: str
    smp: int
    memory_mib: int
    doorbell: int | None = None
    """A connection that the guest signals all the time; it posts and takes messages then, too."""


def linux() -> Guest:
    """Return the Linux test guest; raises ImageError if it has not been built."""
    image = find_image()
    append = "console=ttyS0 panic=-1 loglevel=7 vmbus.tick"
    return Guest(
        (
            *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", append),
            *("-serial", "chardev:console"),
        ),
        "vmbus-guest: tick",
        smp=2,
        memory_mib=128,
    )


class Target:
    """One QEMU whose vmbus-user connects to the test, again and again."""

    def __init__(self, qemu: Path, guest: Guest, logs: Path, patience: float) -> None:
        """``patience`` is how many seconds anything may take before it counts as hung."""
        self.guest = guest
        self.patience = patience
        self._qemu = qemu
        self._logs = logs
        self._folder = Path(tempfile.mkdtemp(prefix="vmbus-fuzz-"))
        self.console = Console(logs / "console.log")
        self.qmp_client = QMPClient("fuzz")
        self._listener: socket.socket | None = None
        self.child: Child | None = None

    async def start(self, *, incoming: bool = False) -> None:
        """Start QEMU and its guest."""
        folder = self._folder
        await self.console.listen(folder / "console.sock")
        await self.qmp_client.start_server(str(folder / "qmp.sock"))
        self._listener = listen(folder / "vmbus.sock")
        self._listener.setblocking(False)
        state = folder / "vmstate"
        state.touch()
        args = [
            *(str(self._qemu), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-L", "/usr/share/seabios", "-L", "/usr/share/qemu"),
            *("-machine", "q35,memory-backend=ram"),
            *("-accel", f"tcg,thread=multi,tb-size={TRANSLATED_MIB}"),
            *("-cpu", ",".join(("max", *HYPERV_FLAGS)), "-smp", str(self.guest.smp)),
            *("-m", f"{self.guest.memory_mib}M", "-object"),
            f"memory-backend-memfd,id=ram,size={self.guest.memory_mib}M,share=on",
            *("-chardev", f"socket,id=console,path={folder / 'console.sock'}"),
            *("-chardev", f"socket,id=qmp,path={folder / 'qmp.sock'}"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=vmbus,path={folder / 'vmbus.sock'},reconnect-ms=20"),
            "-device",
            f"vmbus-user,id=vmbus,chardev=vmbus,stop-timeout-ms={STOP_TIMEOUT_MS},"
            f"state-timeout-ms={STATE_TIMEOUT_MS},max-state-size={MAX_STATE_SIZE}",
            *("-blockdev", f"file,node-name=state-file,filename={state}"),
            *self.guest.args,
        ]
        if incoming:
            args += ["-incoming", "defer"]
        self.child = await Child.start("QEMU", args, self._logs / "qemu.log")
        resource.prlimit(self.child.pid, resource.RLIMIT_CORE, (0, 0))
        self.limit_files(None)
        async with self.deadline("QEMU to start"):
            await self.qmp_client.accept()
        # Where savevm puts its snapshots.
        with self.qmp_client.listener("JOB_STATUS_CHANGE") as events:
            options = {"driver": "qcow2", "file": "state-file", "size": 0}
            await self.qmp("blockdev-create", {"job-id": "create", "options": options})
            while _data(await events.get())["status"] != "concluded":
                pass
        await self.qmp("job-dismiss", {"id": "create"})
        await self.qmp(
            "blockdev-add", {"driver": "qcow2", "node-name": "state", "file": "state-file"}
        )
        await self.qmp(
            "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
        )
        await self.qmp("migrate-set-parameters", {"max-bandwidth": 1 << 40})

    async def kill(self) -> None:
        """Kill QEMU and remove what it leaves behind."""
        with contextlib.suppress(Exception):
            await self.qmp_client.disconnect()
        if self.child is not None:
            await self.child.kill()
        await self.console.close()
        if self._listener is not None:
            self._listener.close()
        shutil.rmtree(self._folder)

    @contextlib.asynccontextmanager
    async def deadline(self, what: str) -> Any:
        """Raise :class:`Failure` if the body takes longer than the patience, or QEMU ends."""
        assert self.child is not None
        task = asyncio.current_task()
        assert task is not None

        def died(_: object) -> None:
            task.cancel()

        self.child.ended.add_done_callback(died)
        try:
            async with asyncio.timeout(self.patience):
                yield
        except TimeoutError:
            raise Failure(f"{what}: not within {self.patience:g} s") from None
        except ExecuteError:
            raise
        except (asyncio.CancelledError, EOFError, QMPError):
            # Sockets close a moment before the process can be reaped.
            if not task.cancelling():
                self.child.ended.remove_done_callback(died)
                await asyncio.wait({self.child.ended}, timeout=_REAP_SECONDS)
            if not self.child.ended.done():
                raise
            if task.cancelling():
                task.uncancel()
            raise Failure(f"{what}: {self.child.obituary()}") from None
        finally:
            self.child.ended.remove_done_callback(died)

    async def qmp(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a QMP command; raises ExecuteError, or :class:`Failure` if none answers."""
        async with self.deadline(f"QMP {command}"):
            return await self.qmp_client.execute(command, arguments)

    async def info(self) -> dict[str, Any]:
        """Return what the device says of itself, VmbusUserInfo."""
        path = "/machine/peripheral/vmbus"
        info: dict[str, Any] = await self.qmp("qom-get", {"path": path, "property": "info"})
        return info

    async def hmp(self, line: str) -> str:
        """Execute a command of the human monitor and return what it prints."""
        return str(await self.qmp("human-monitor-command", {"command-line": line})).strip()

    async def accept(self) -> socket.socket:
        """Take QEMU's next connection."""
        assert self._listener is not None
        async with self.deadline("QEMU to connect"):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        sock.setblocking(False)
        return sock

    async def migrate(self, command: str = "migrate") -> str:
        """Save to, or load from, the file of this target; returns why it failed, or ""."""
        uri = f"file:{self._folder / 'stream'}"
        arguments: dict[str, object] = {"uri": uri}
        if command == "migrate-incoming":
            arguments["exit-on-error"] = False
        with self.qmp_client.listener("MIGRATION") as events:
            try:
                await self.qmp(command, arguments)
            except ExecuteError as error:
                return str(error)
            async with self.deadline(command):
                while True:
                    status = _data(await events.get())["status"]
                    if status in ("completed", "failed", "cancelled"):
                        break
        if command == "migrate":
            # The event comes before the machine is in a state from which it can be resumed.
            async with self.deadline("the end of the migration"):
                while (await self.qmp("query-status"))["status"] == "finish-migrate":
                    pass
        if status == "completed":
            return ""
        info = await self.qmp("query-migrate")
        return str(info.get("error-desc", "no reason given"))

    async def tick(self) -> None:
        """Wait until the guest, which has to be running, says something new."""
        async with self.deadline("the guest to run on"):
            await self.console.wait_for(self.guest.tick, len(self.console.lines))

    def log(self, start: int = 0) -> str:
        """Return QEMU's log from byte ``start`` on."""
        assert self.child is not None
        return self.child.log.read_bytes()[start:].decode("utf-8", "replace")

    def log_size(self) -> int:
        """Return the size of QEMU's log in bytes."""
        assert self.child is not None
        return self.child.log.stat().st_size

    def limit_files(self, spare: int | None) -> None:
        """Let QEMU open ``spare`` descriptors more than it has, or as many as the system allows."""
        assert self.child is not None
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = hard
        if spare is not None:
            used = set(map(int, os.listdir(f"/proc/{self.child.pid}/fd")))
            free = (number for number in itertools.count() if number not in used)
            soft = next(itertools.islice(free, spare, None))
        resource.prlimit(self.child.pid, resource.RLIMIT_NOFILE, (soft, hard))

    def descriptors(self) -> collections.Counter[str]:
        """Count QEMU's open descriptors by kind."""
        assert self.child is not None
        folder = f"/proc/{self.child.pid}/fd"
        kinds: collections.Counter[str] = collections.Counter()
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                kinds[os.readlink(f"{folder}/{name}").split(":[")[0]] += 1
        return kinds

    def memory_kib(self) -> int:
        """Return QEMU's resident memory that is not the guest's RAM, in KiB."""
        assert self.child is not None
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
        raise Failure("QEMU's memory cannot be read")
