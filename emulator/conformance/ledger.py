# SPDX-License-Identifier: MIT
"""What both parties of an explored run have sent and seen, and what has to hold between the two.

The ledger knows everything at once. The guest's half of it stands for guest memory and the VSP's
half for what a VSP saves of its own, so it outlives the processes. Each entry is checked when it is
made: a rule that is broken raises :class:`Violation` at the step that broke it.

Order. Requests reach the VSP in the order in which they were written, and what the host sends,
packets and completions alike, reaches the guest in the order in which the VSP made it.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from emulator.wire.ntstatus import NtStatus

PAGE = 4096


class Symptom(Enum):
    """In which way a run failed."""

    LOST = "lost"
    """Something was never delivered or never ended, and no signal would help."""
    STUCK = "stuck"
    """Everybody sleeps, and work is left that a signal sets going."""
    TWICE = "twice"
    """Something was delivered, answered or ended more than once, or not at all asked for."""
    ORDER = "order"
    """Something came before what was sent before it."""
    BYTES = "bytes"
    """Something came with other bytes."""
    STATUS = "status"
    """A call or a completion routine had the wrong status."""
    CALLBACK = "callback"
    """A callback ran when it must not, or did not run when it must."""
    ID = "id"
    """A transaction id was given out while it was outstanding."""
    LEAK = "leak"
    """Packet objects were not given back."""
    MEMORY = "memory"
    """Guest memory was written that must not be, or when it must not be."""
    CRASH = "crash"
    """A call that is allowed raised."""


class Violation(Exception):
    """A rule that has to hold does not."""

    def __init__(self, symptom: Symptom, text: str) -> None:
        """Say what happened."""
        super().__init__(f"{symptom.value}: {text}")
        self.symptom = symptom


def pad(data: bytes) -> bytes:
    """Return ``data`` as a ring carries it, in units of 8 bytes."""
    return data + bytes(-len(data) % 8)


def body(number: int, filler: int) -> bytes:
    """Return the payload of a request or packet."""
    return number.to_bytes(8, "little") + bytes([number & 0xFF]) * filler


def completion(number: int) -> bytes:
    """Return the payload of the completion of a request or packet: 8 to 400 bytes."""
    return number.to_bytes(8, "little") + bytes([~number & 0xFF]) * (number * 29 % 50 * 8)


def blob(number: int) -> bytes:
    """Return what the VSP saves of its own with a packet."""
    return number.to_bytes(8, "little") + bytes([number * 3 & 0xFF]) * (number * 37 % 120)


def framed(message: bytes) -> bytes:
    """Return what a packet of a pipe carries for a message: type 1, its size, itself."""
    return b"\1\0\0\0" + len(message).to_bytes(4, "little") + message


def number_of(data: bytes) -> int:
    """Return the number that each payload begins with."""
    return int.from_bytes(data[:8], "little")


@dataclass(frozen=True, slots=True)
class External:
    """The RAM of a GPA-direct request."""

    page: int
    size: int

    @property
    def place(self) -> slice:
        """Where it lies in RAM: at the end of its page."""
        return slice((self.page + 1) * PAGE - self.size, (self.page + 1) * PAGE)


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the guest."""

    number: int
    filler: int
    completion: bool
    external: External | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet of the host."""

    number: int
    filler: int
    waits: bool


@dataclass
class Ledger:
    """The books of one run; see the head of the file."""

    requests: int = 0
    """Requests that the guest has made."""
    sends: int = 0
    """Packets that the VSP has made."""
    connected: bool = False
    failed: bool = False
    """The VSP has failed a packet: nothing is read until the channel is opened anew."""
    written: deque[Request] = field(default_factory=deque)
    """In the guest-to-host ring, as far as the VSP has not seen them."""
    asked: set[int] = field(default_factory=set)
    """Requests whose completion the guest waits for."""
    made: deque[Sent | int] = field(default_factory=deque)
    """What the guest has yet to read, packets and numbers of completed requests."""
    in_use: dict[int, Sent] = field(default_factory=dict)
    """Packets whose completion routine has not run."""
    answered: set[int] = field(default_factory=set)
    """Packets that the guest has completed, of those in use."""
    ids: dict[int, int] = field(default_factory=dict)
    """Transaction ids the guest has seen, of packets in use."""
    last_inserted: int = 0
    """The last packet without a completion whose routine ran."""
    ram: bytearray = field(default_factory=bytearray)
    """What RAM must look like."""
    slots: set[int] = field(default_factory=set)
    """Pages of RAM that belong to a GPA-direct request."""
    unowned: set[int] = field(default_factory=set)
    """Packets that a restore has taken from the VSP: their routines do not run any more."""
    pipe: bool = False
    retired: NtStatus = NtStatus.DEVICE_REMOVED
    """The status of packets that end with the connection."""
    strays: int = 0
    """Completions of nothing that the guest has written."""
    gpadl: int = 0
    """The handle of the GPADL that the guest has made beside the rings; 0 for none."""
    gpadls_made: int = 0
    torn_down: bool = False
    """The guest has asked for its pages back, and waits."""
    mapping: str = ""
    """How the VSP wants the GPADL mapped, over a restore too: "r", "w" or not at all."""
    gpadl_word: int = 0
    """What the first word of the GPADL's pages is."""

    def snapshot(self) -> dict[str, Any]:
        """Copy all of it."""
        return copy.deepcopy(vars(self))

    def put_back(self, saved: dict[str, Any]) -> None:
        """Return to a snapshot."""
        vars(self).update(copy.deepcopy(saved))

    # The guest.

    def guest_writes(self, request: Request) -> None:
        """The guest is about to write a request."""
        self.written.append(request)
        if request.completion:
            self.asked.add(request.number)

    def guest_found_no_room(self, count: int) -> None:
        """The last ``count`` requests were not written after all."""
        for _ in range(count):
            self.asked.discard(self.written.pop().number)

    def guest_reads_packet(self, transaction_id: int, wants: bool, payload: bytes) -> int:
        """The guest has read a packet; returns its number."""
        number = number_of(payload)
        if self.pipe:
            number = number_of(payload[8:])
        sent = self._next(number, "packet")
        if not isinstance(sent, Sent):
            raise Violation(Symptom.ORDER, f"packet {number} came before completion {sent}")
        if sent.number != number:
            symptom = Symptom.TWICE if number < sent.number else Symptom.ORDER
            raise Violation(symptom, f"packet {number} came, {sent.number} was next")
        message = body(number, sent.filler)
        expected = pad(framed(message) if self.pipe else message)
        if payload != expected or wants is not sent.waits:
            raise Violation(Symptom.BYTES, f"packet {number} came with other bytes or flags")
        if sent.waits:
            other = self.ids.get(transaction_id)
            if other is not None or not transaction_id:
                raise Violation(
                    Symptom.ID, f"packet {number} has the id {transaction_id:#x} of packet {other}"
                )
            self.ids[transaction_id] = number
        return number

    def guest_reads_completion(self, number: int, payload: bytes) -> None:
        """The guest has read a completion."""
        if number not in self.asked:
            raise Violation(Symptom.TWICE, f"completion {number} came, which nobody waits for")
        expected = self._next(number, "completion")
        if expected != number:
            raise Violation(Symptom.ORDER, f"completion {number} came, {expected} was next")
        if payload != completion(number):
            raise Violation(Symptom.BYTES, f"completion {number} came with other bytes")
        self.asked.remove(number)

    def _next(self, number: int, what: str) -> Sent | int:
        if not self.made:
            raise Violation(Symptom.TWICE, f"{what} {number} came, and none was due")
        return self.made.popleft()

    def guest_answers(self, number: int) -> None:
        """The guest is about to write its completion of a packet."""
        if number in self.unowned:
            self._forget_id(number)
        else:
            self.answered.add(number)

    # The VSP.

    def vsp_gets(self, payload: bytes, wants: bool) -> Request:
        """A request was delivered."""
        number = number_of(payload)
        if not self.written:
            raise Violation(Symptom.TWICE, f"request {number} came, and none was due")
        request = self.written.popleft()
        if number != request.number:
            symptom = Symptom.TWICE if number < request.number else Symptom.ORDER
            raise Violation(symptom, f"request {number} came, {request.number} was next")
        message = body(number, request.filler)
        expected = message if self.pipe else pad(message)
        if payload != expected or wants is not request.completion:
            raise Violation(Symptom.BYTES, f"request {number} came with other bytes or flags")
        if self.failed:
            raise Violation(Symptom.CALLBACK, f"request {number} came after VmbChannelPacketFail")
        return request

    def vsp_has_it_not_yet(self, request: Request) -> None:
        """What was delivered is in the ring again: its external data are pending."""
        self.written.appendleft(request)

    def vsp_completes(self, request: Request) -> None:
        """The VSP is about to complete a request."""
        if request.completion:
            self.made.append(request.number)

    def vsp_fails(self, request: Request) -> None:
        """The VSP is about to fail a request."""
        self.failed = True
        self.asked.discard(request.number)

    def vsp_sends(self, filler: int, waits: bool) -> Sent:
        """The VSP is about to send."""
        self.sends += 1
        sent = Sent(self.sends, filler, waits)
        self.in_use[sent.number] = sent
        self.made.append(sent)
        return sent

    def routine_runs(self, number: int, status: NtStatus, data: bytes | None) -> None:
        """A completion routine runs."""
        sent = self.in_use.pop(number, None)
        if sent is None:
            raise Violation(Symptom.TWICE, f"the routine of packet {number} ran again")
        self._forget_id(number)
        if status is not NtStatus.SUCCESS:
            if self.connected or status is not self.retired or data is not None:
                raise Violation(Symptom.STATUS, f"packet {number} ended with {status.name}")
            return
        if not sent.waits:
            if data is not None:
                raise Violation(Symptom.BYTES, f"packet {number} ended with bytes of the guest")
            if number < self.last_inserted:
                raise Violation(
                    Symptom.ORDER, f"packet {number} was inserted after {self.last_inserted}"
                )
            self.last_inserted = number
            return
        if number not in self.answered:
            raise Violation(Symptom.STATUS, f"packet {number} ended, the guest has not answered")
        self.answered.remove(number)
        if data != completion(number):
            raise Violation(Symptom.BYTES, f"the answer to packet {number} has other bytes")

    def _forget_id(self, number: int) -> None:
        for transaction_id in [key for key, value in self.ids.items() if value == number]:
            del self.ids[transaction_id]

    def disown(self, number: int, *, unsent: bool) -> None:
        """The packet was restored and is not the VSP's any more; or, ``unsent``, not at all."""
        sent = self.in_use.pop(number)
        self.unowned.add(number)
        if unsent:
            self.made.remove(sent)

    # The connection.

    def opens(self) -> None:
        """The guest is about to open."""
        self.connected = True

    def closing(self) -> None:
        """The guest is about to close: what it has not read it never will."""
        self.connected = False

    def closed(self) -> None:
        """The channel has closed."""
        if self.in_use:
            raise Violation(
                Symptom.LOST, f"packets {sorted(self.in_use)} have outlived the connection"
            )
        self.abandoned()

    def abandoned(self) -> None:
        """The connection, or what was queued for one to come, is gone without a trace."""
        self.connected = self.failed = False
        self.in_use.clear()
        self.unowned.clear()
        self.written.clear()
        self.asked.clear()
        self.made.clear()
        self.answered.clear()
        self.ids.clear()
        self.slots.clear()

    def left(self) -> str:
        """Name what is not done although everybody has come to rest; empty if all is."""
        if not self.connected:
            return ""
        left: list[str] = []
        if not self.failed and self.written:
            left.append(f"requests {[request.number for request in self.written]} not delivered")
        if self.made:
            left.append(f"{len(self.made)} packets or completions not read by the guest")
        unanswered = self.asked - {request.number for request in self.written}
        if unanswered:
            left.append(f"requests {sorted(unanswered)} not answered")
        # A channel that a failed packet has stopped reads no completions either.
        in_use = [sent.number for sent in self.in_use.values() if not (self.failed and sent.waits)]
        if in_use:
            left.append(f"routines of packets {in_use} not run")
        return ", ".join(left)
