# SPDX-License-Identifier: MIT
"""A logical unit: what disks and DVD drives have in common. Commands in, steps out; no I/O.

:meth:`LogicalUnit.execute` takes a command and returns a :mod:`step <.steps>`, or raises
:class:`CheckCondition` or :class:`ReservationConflict`. The order in which a command is judged is
that of SAM-5: pending unit attention, reservation, then the command itself (INQUIRY, REPORT LUNS
and REQUEST SENSE are not held up by either).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final

from emulator.devices.storage import inquiry
from emulator.devices.storage.inquiry import Identity
from emulator.devices.storage.reservations import Reservations
from emulator.devices.storage.scsi import CheckCondition, Op, ReservationConflict, Sense
from emulator.devices.storage.steps import Reply, Step

DataOut = Callable[[int], bytes]
"""Copies up to that many bytes of what the guest sends with a command."""

Handler = Callable[[bytes, DataOut], Step]

_NEVER_HELD_UP: Final = frozenset({Op.INQUIRY, Op.REPORT_LUNS, Op.REQUEST_SENSE})


def lun_list(luns: list[int]) -> bytes:
    """Encode the data of REPORT LUNS: peripheral device addressing below 256 (SAM-5 4.7.3)."""
    entries = b"".join(bytes((0, lun)) + bytes(6) for lun in luns)
    return len(entries).to_bytes(4, "big") + bytes(4) + entries


class LogicalUnit(ABC):
    """One LUN. ``luns`` gives the numbers of all units of its target."""

    device_type: ClassVar[int]
    removable: ClassVar[bool]

    def __init__(self, identity: Identity, luns: Callable[[], list[int]]) -> None:
        self.identity = identity
        self._luns = luns
        self.attentions: list[Sense] = []
        self.reservations = Reservations()
        self.stopped = False
        self.removal_prevented = False
        self.quick = False
        """Whether a READ or WRITE needs no more judgement than its range; see :meth:`settle`."""
        self._handlers: dict[int, Handler] = {
            Op.TEST_UNIT_READY: self._test_unit_ready,
            Op.REQUEST_SENSE: self._request_sense,
            Op.INQUIRY: self._inquiry,
            Op.START_STOP_UNIT: self._start_stop,
            Op.PREVENT_ALLOW_MEDIUM_REMOVAL: self._prevent_allow,
            Op.REPORT_LUNS: self._report_luns,
        }

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether there is a medium."""

    @abstractmethod
    def settle(self) -> None:
        """Find out anew whether the unit is :attr:`quick`; to be called when its state changed."""

    @abstractmethod
    def vpd(self, page: int) -> bytes | None:
        """Return the body of a VPD page of this kind of unit; None if it has no such page."""

    @property
    @abstractmethod
    def vpd_pages(self) -> tuple[int, ...]:
        """The VPD pages there are, in ascending order."""

    def execute(self, nexus: str, cdb: bytes, data_out: DataOut) -> Step:
        """Judge and decode a command of the initiator ``nexus``; see the head of the file."""
        opcode = cdb[0]
        if opcode not in _NEVER_HELD_UP:
            if self.attentions:
                attention = self.attentions.pop(0)
                self.settle()
                raise CheckCondition(attention)
            if not self.reservations.allows(nexus, cdb):
                raise ReservationConflict
        if opcode in (Op.PERSISTENT_RESERVE_IN, Op.PERSISTENT_RESERVE_OUT):
            return self._persistent_reserve(nexus, cdb, data_out)
        handler = self._handlers.get(opcode)
        if handler is None:
            raise CheckCondition(Sense.INVALID_OPCODE)
        return handler(cdb, data_out)

    def attention(self, sense: Sense) -> None:
        """Have the guest told, once, at its next command."""
        if sense not in self.attentions:
            self.attentions.append(sense)
        self.settle()

    def reset(self) -> None:
        """Do what a LUN or bus reset does: nothing lasting but the attention."""
        self.removal_prevented = False
        self.stopped = False
        self.attention(Sense.DEVICE_RESET)

    def _persistent_reserve(self, nexus: str, cdb: bytes, data_out: DataOut) -> Step:
        if cdb[0] == Op.PERSISTENT_RESERVE_IN:
            allocated = int.from_bytes(cdb[7:9], "big")
            return Reply(self.reservations.report(cdb[1] & 0x1F)[:allocated])
        length = int.from_bytes(cdb[5:9], "big")
        self.reservations.change(nexus, cdb[1] & 0x1F, cdb[2], data_out(length))
        self.settle()
        return Reply()

    def need_medium(self) -> None:
        """Raise :class:`CheckCondition` unless there is a medium that turns."""
        if not self.ready:
            raise CheckCondition(Sense.MEDIUM_NOT_PRESENT)
        if self.stopped:
            raise CheckCondition(Sense.STOPPED)

    def _test_unit_ready(self, cdb: bytes, _: DataOut) -> Step:
        self.need_medium()
        return Reply()

    def _request_sense(self, cdb: bytes, _: DataOut) -> Step:
        sense = Sense.NONE
        if self.attentions:
            sense = self.attentions.pop(0)
            self.settle()
        elif not self.ready:
            sense = Sense.MEDIUM_NOT_PRESENT
        data = sense.descriptor() if cdb[1] & 1 else sense.fixed()
        return Reply(data[: cdb[4]])

    def _inquiry(self, cdb: bytes, _: DataOut) -> Step:
        allocated = int.from_bytes(cdb[3:5], "big")
        page = cdb[2]
        if not cdb[1] & 1:
            if page:
                raise CheckCondition(Sense.INVALID_FIELD)
            data = inquiry.standard(self.device_type, self.removable, self.identity)
            return Reply(data[:allocated])
        if page == 0:
            body: bytes | None = bytes(self.vpd_pages)
        elif page == inquiry.SERIAL_PAGE:
            body = inquiry.serial_page(self.identity)
        elif page == inquiry.IDENTIFICATION_PAGE:
            body = inquiry.identification_page(self.identity)
        else:
            body = self.vpd(page)
        if body is None:
            raise CheckCondition(Sense.INVALID_FIELD)
        head = bytes((self.device_type, page)) + len(body).to_bytes(2, "big")
        return Reply((head + body)[:allocated])

    def _start_stop(self, cdb: bytes, _: DataOut) -> Step:
        start, load_eject = cdb[4] & 1, cdb[4] & 2
        if cdb[4] >> 4:
            # A power condition, which the two bits do not matter for; there is but one.
            return Reply()
        if load_eject:
            self.load_or_eject(load=bool(start))
            return Reply()
        self.stopped = not start
        self.settle()
        return Reply()

    def load_or_eject(self, *, load: bool) -> None:
        """Obey the guest's LOEJ; raises :class:`CheckCondition`."""
        raise CheckCondition(Sense.INVALID_FIELD)

    def _prevent_allow(self, cdb: bytes, _: DataOut) -> Step:
        self.removal_prevented = bool(cdb[4] & 1)
        return Reply()

    def _report_luns(self, cdb: bytes, _: DataOut) -> Step:
        allocated = int.from_bytes(cdb[6:10], "big")
        if cdb[2] > 2 or allocated < 16:
            raise CheckCondition(Sense.INVALID_FIELD)
        # There are no well known units, which is all that 1 asks for.
        return Reply(lun_list([] if cdb[2] == 1 else self._luns())[:allocated])
