# SPDX-License-Identifier: MIT
"""The probe device: what a person or a test can ask of the VSP in :mod:`.vsp` (docs/probe.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

import msgspec

from emulator.devices.base import Command, DeviceStateError
from emulator.devices.probe.control import GuestGone
from emulator.devices.probe.gpadls import GpadlNote
from emulator.devices.probe.ledger import GuestLedger, compare
from emulator.devices.probe.options import read_options
from emulator.devices.probe.protocol import (
    Deed,
    ExitAction,
    MalformedProbe,
    ProbeType,
    StallAnswer,
    gpadl_make_body,
    run_body,
    stall_body,
)
from emulator.devices.probe.trials import SaveTrial
from emulator.devices.probe.vsp import FREEZE_QUOTA, RUN_QUOTA, ProbeVsp
from emulator.kmcl import ChannelPort
from emulator.kmcl.countdown import countdown

log = logging.getLogger(__name__)

_FREEZE_TRIES: Final = 20


class ProbeDevice(ProbeVsp):
    """The VSP with its commands; they are in :meth:`commands`."""

    kind: ClassVar[str] = "probe"

    @classmethod
    def make(cls, name: str, vm: str, port: ChannelPort, options: Mapping[str, Any]) -> Self:
        """Make a probe; ``options`` are those of :class:`~.options.ProbeOptions`."""
        return cls(name, vm, port, read_options(name, options))

    def commands(self) -> Mapping[str, Command]:
        """Return what can be asked of the probe."""
        return {
            "ready": self._cmd_ready,
            "run": self._cmd_run,
            "wait": self._cmd_wait,
            "freeze": self._cmd_freeze,
            "thaw": self._cmd_thaw,
            "finish": self._cmd_finish,
            "counts": self._cmd_counts,
            "malform": self._cmd_malform,
            "ping": self._cmd_ping,
            "exit": self._cmd_exit,
            "wait_fault": self._cmd_wait_fault,
            "resume_guest": self._cmd_resume_guest,
            "more": self._cmd_more,
            "ledger": self._cmd_ledger,
            "late": self._cmd_late,
            "wait_late": self._cmd_wait_late,
            "save_buffer": self._cmd_save_buffer,
            "half_save": self._cmd_half_save,
            "trial": self._cmd_trial,
            "rescind": self._cmd_rescind,
            "reoffer": self._cmd_reoffer,
            "reopen": self._cmd_reopen,
            "gpadl": self._cmd_gpadl,
        }

    async def _ask(self, kind: ProbeType, body: bytes = b"") -> bytes:
        try:
            return await self._control.ask(kind, body)
        except (GuestGone, MalformedProbe) as error:
            raise DeviceStateError(str(error)) from error

    async def _cmd_ready(self, _: dict[str, Any]) -> Any:
        return {"guest": await self._control.ready()}

    async def _cmd_run(self, args: dict[str, Any]) -> Any:
        """Start the conversation, both ways."""
        body = run_body(
            window=args.get("window", 16),
            gpa_every=args.get("gpa_every", 3),
            owe_every=args.get("owe_every", 3),
            body_max=args.get("body_max", 2000),
            total=args.get("total", 0),
        )
        await self._ask(ProbeType.RUN, body)
        self._talking, self._finishing = True, False
        self._talk()
        return {}

    async def _cmd_wait(self, args: dict[str, Any]) -> Any:
        """Wait until so many more requests and completions have come."""
        requests = self._ledger.next_request + int(args.get("requests", 0))
        completions = self._ledger.completions + int(args.get("completions", 0))
        await self._until(
            lambda: (
                self._ledger.next_request >= requests and self._ledger.completions >= completions
            )
        )
        return await self._cmd_counts({})

    async def _until(self, condition: Any) -> None:
        while not condition():
            if self.faults:
                raise DeviceStateError(f"the channel has failed: {self.faults[-1]}")
            self._progress.clear()
            await self._progress.wait()

    async def _cmd_freeze(self, args: dict[str, Any]) -> Any:
        """Bring packets of every kind into flight and keep them there."""
        for _ in range(_FREEZE_TRIES):
            self._frozen = True
            self._data.set_transaction_quota(FREEZE_QUOTA)
            answer = StallAnswer.parse(
                await self._ask(
                    ProbeType.STALL, stall_body(requests=int(args.get("requests", 12)), answers=3)
                )
            )
            await self._until(lambda: len(self._held) >= FREEZE_QUOTA or not self._running)
            self._fill()
            self._note_flight()
            if self._flight.complete() or args.get("any"):
                return {"in_flight": self._flight.counts()}
            log.info("not every kind is in flight yet: %s, %s", answer, self._flight.counts())
            await self._cmd_thaw({})
            await self._cmd_wait({"requests": 40, "completions": 40})
        raise DeviceStateError(
            f"no moment with every kind in flight in {_FREEZE_TRIES} tries; "
            f"last: {self._flight.counts()}"
        )

    async def _cmd_thaw(self, _: dict[str, Any]) -> Any:
        """Let everything go on."""
        self._frozen = False
        self._data.set_transaction_quota(RUN_QUOTA)
        await self._ask(ProbeType.RESUME)
        self._answer_held()
        self._talk()
        return {}

    async def _cmd_finish(self, _: dict[str, Any]) -> Any:
        """End the conversation and compare the ledgers."""
        self._finishing = True
        self._answer_held()
        body = self._ledger.last_seq.to_bytes(8, "little")
        guest = GuestLedger.parse(await self._ask(ProbeType.FINISH, body))
        await self._until(lambda: not self._outstanding)
        return {
            "problems": [*compare(self._ledger, guest), *self.faults],
            "rows": self._flight.outcome(guest),
            "guest": guest.as_dict(),
            "host": msgspec.to_builtins(self._ledger),
        }

    async def _cmd_counts(self, _: dict[str, Any]) -> Any:
        """Return what is known now, without asking the guest."""
        return {
            "host": msgspec.to_builtins(self._ledger),
            "stats": msgspec.to_builtins(self._data.stats()),
            "in_flight": self._flight.counts(),
            "faults": list(self.faults),
            "frozen": self._frozen,
            "removed": self._removed,
            "late": [status.name for status in self._late],
            "save_calls": self._trials.calls,
            "held_gpa_direct": sum(bool(packet.external) for packet, _, _ in self._held),
            "transactions": sorted(
                packet.transaction_id for packet in self._data.traffic.in_ring()
            ),
        }

    async def _cmd_malform(self, args: dict[str, Any]) -> Any:
        """Have the guest do one wrong thing."""
        await self._ask(ProbeType.MALFORM, Deed(int(args["kind"])).to_bytes(4, "little"))
        return {}

    async def _cmd_wait_fault(self, _: dict[str, Any]) -> Any:
        """Wait until a channel has failed; returns how."""
        while not self.faults:
            self._progress.clear()
            await self._progress.wait()
        return {"faults": list(self.faults)}

    async def _cmd_ping(self, _: dict[str, Any]) -> Any:
        """Return the guest's monotonic time in ns."""
        return {"guest_ns": int.from_bytes((await self._ask(ProbeType.PING))[:8], "little")}

    async def _cmd_exit(self, args: dict[str, Any]) -> Any:
        """End the guest's program."""
        action = ExitAction(int(args["action"]))
        await self._ask(ProbeType.EXIT, action.to_bytes(4, "little"))
        return {}

    async def _cmd_resume_guest(self, _: dict[str, Any]) -> Any:
        """Have the guest go on after a freeze, and hold what it sends."""
        await self._ask(ProbeType.RESUME)
        return {}

    async def _cmd_more(self, args: dict[str, Any]) -> Any:
        """Send ``packets`` more, whatever is outstanding."""
        for _ in range(int(args["packets"])):
            self._send_next()
        return await self._cmd_counts({})

    async def _cmd_ledger(self, _: dict[str, Any]) -> Any:
        """Return the guest's ledger as of now."""
        return GuestLedger.parse(await self._ask(ProbeType.LEDGER)).as_dict()

    async def _cmd_late(self, _: dict[str, Any]) -> Any:
        """Ask the guest to finish when it has one packet more than there is, and do not wait.

        The answer has to come in the process that restores: ``wait_late`` sends the packet.
        """
        last = self._ledger.last_seq + 1
        self._later(ProbeType.FINISH, last.to_bytes(8, "little"))
        return {}

    def _later(self, kind: ProbeType, body: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._control.ask(kind, body))
        self._asked.add(task)
        task.add_done_callback(self._heard)

    def _heard(self, task: asyncio.Task[bytes]) -> None:
        self._asked.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.info("a command was not answered: %s", error)

    async def _cmd_wait_late(self, args: dict[str, Any]) -> Any:
        """Wait for the answer to what was asked before the save; with ``send`` send a packet."""
        if args.get("send"):
            self._send_next()
        await self._until(lambda: bool(self._late))
        return {"late": [status.name for status in self._late]}

    async def _cmd_save_buffer(self, args: dict[str, Any]) -> Any:
        """Save with a buffer of ``size`` bytes from now on."""
        size = int(args["size"])
        if size < 0:
            raise ValueError("a buffer of less than no bytes")
        self.save_buffer = size
        return {}

    async def _cmd_half_save(self, args: dict[str, Any]) -> Any:
        """Begin to save the data channel of a stopped machine, and give it up."""
        begun = self._data.save_begin()
        went_on = self._data.save_continue(int(args["size"])).status
        self._data.save_end()
        return {"statuses": [begun.name, went_on.name]}

    async def _cmd_trial(self, args: dict[str, Any]) -> Any:
        """Misbehave in saves as ``kind`` says, or with none no more."""
        kind = args.get("kind")
        self._trials.begin(SaveTrial(kind) if kind else None)
        return {}

    async def _cmd_rescind(self, _: dict[str, Any]) -> Any:
        """Take both channels back from the running guest."""
        gone = asyncio.Event()
        left = countdown(len(self.channels), gone.set)
        for channel in self.channels.values():
            channel.disable(left)
        await gone.wait()
        return await self._cmd_counts({})

    async def _cmd_reoffer(self, _: dict[str, Any]) -> Any:
        """Offer both channels again; the guest finds them as new ones."""
        self.power_on()
        if self.runs:
            self.resume()
        return {}

    async def _cmd_reopen(self, _: dict[str, Any]) -> Any:
        """Have the guest close the data channel and open it again."""
        await self._ask(ProbeType.REOPEN)
        return {}

    async def _cmd_gpadl(self, args: dict[str, Any]) -> Any:
        """Do one thing with the GPADL ``number``; docs/probe.md, section 6."""
        number = int(args["number"])
        match args["do"]:
            case "make":
                pages = int(args.get("pages", 4))
                answer = await self._ask(
                    ProbeType.GPADL_MAKE, gpadl_make_body(number=number, pages=pages)
                )
                handle = int.from_bytes(answer[:4], "little")
                self._gpadls.notes[number] = GpadlNote(handle, pages)
                return {"handle": handle}
            case "map":
                return {"good": self._gpadls.map(number)}
            case "write":
                return self._gpadls.write(number)
            case "unmap":
                return self._gpadls.unmap(number)
            case "keep":
                self._gpadls.keep = bool(number)
                return None
            case "check":
                body = number.to_bytes(4, "little")
                answer = await self._ask(ProbeType.GPADL_CHECK, body)
                return {"good": int.from_bytes(answer[:4], "little") == self._gpadls.crc(number)}
            case "free":
                body = number.to_bytes(4, "little")
                answer = await self._ask(ProbeType.GPADL_FREE, body)
                good = int.from_bytes(answer[:4], "little") == self._gpadls.crc(number)
                del self._gpadls.notes[number]
                return {"good": good}
            case "free_later":
                self._later(ProbeType.GPADL_FREE, number.to_bytes(4, "little"))
                return None
            case other:
                raise ValueError(f"{other!r} is nothing that is done with a GPADL")
