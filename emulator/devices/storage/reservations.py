# SPDX-License-Identifier: MIT
"""Persistent reservations of one unit (SPC-4 section 5.13): keys, holder, and who may do what.

An initiator is known by the name of its nexus: one controller is one initiator, whatever number of
channels it has. They are kept over a save (:meth:`Reservations.saved`), and not over the end of the
machine: APTPL, which asks for that, is refused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from emulator.devices.storage.scsi import CheckCondition, Op, ReservationConflict, Sense

MAX_KEYS: Final = 64
_PARAMETERS: Final = 24
_APTPL: Final = 0x01
_SPEC_I_PT: Final = 0x08


class Type(IntEnum):
    """Types of a reservation."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_REGISTRANTS = 6
    WRITE_EXCLUSIVE_ALL = 7
    EXCLUSIVE_ACCESS_ALL = 8


class Action(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE = 6


_OF_ALL: Final = (Type.WRITE_EXCLUSIVE_ALL, Type.EXCLUSIVE_ACCESS_ALL)
_FOR_REGISTRANTS: Final = (
    Type.WRITE_EXCLUSIVE_REGISTRANTS,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS,
    *_OF_ALL,
)
_EXCLUSIVE: Final = (
    Type.EXCLUSIVE_ACCESS,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS,
    Type.EXCLUSIVE_ACCESS_ALL,
)
_ALWAYS: Final = frozenset(
    {
        Op.INQUIRY,
        Op.REPORT_LUNS,
        Op.REQUEST_SENSE,
        Op.TEST_UNIT_READY,
        Op.PERSISTENT_RESERVE_IN,
        Op.PERSISTENT_RESERVE_OUT,
        Op.READ_CAPACITY_10,
        Op.PREVENT_ALLOW_MEDIUM_REMOVAL,
        Op.START_STOP_UNIT,
        Op.GET_EVENT_STATUS_NOTIFICATION,
        Op.GET_CONFIGURATION,
    }
)
_READS: Final = frozenset(
    {
        Op.READ_6,
        Op.READ_10,
        Op.READ_12,
        Op.READ_16,
        Op.SERVICE_ACTION_IN_16,
        Op.VERIFY_10,
        Op.VERIFY_12,
        Op.VERIFY_16,
        Op.MODE_SENSE_6,
        Op.MODE_SENSE_10,
        Op.READ_TOC,
    }
)


class SavedReservations(msgspec.Struct, frozen=True, array_like=True):
    """Reservations in a snapshot."""

    generation: int
    keys: dict[str, int]
    holder: str
    type: int


class Reservations:
    """Who is registered, and who holds the unit."""

    def __init__(self) -> None:
        self._generation = 0
        self._keys: dict[str, int] = {}
        self._holder = ""
        self._type: Type | None = None

    @property
    def any(self) -> bool:
        """Whether the unit is reserved, so that commands have to be judged."""
        return self._type is not None

    def saved(self) -> SavedReservations:
        """Return what a snapshot keeps."""
        return SavedReservations(self._generation, dict(self._keys), self._holder, self._type or 0)

    def restore(self, saved: SavedReservations) -> None:
        """Take over; raises ValueError for what can never have been saved."""
        self._generation, self._keys = saved.generation, dict(saved.keys)
        self._holder = saved.holder
        self._type = Type(saved.type) if saved.type else None

    def allows(self, nexus: str, cdb: bytes) -> bool:
        """Whether the initiator may send this command now."""
        kind = self._type
        if kind is None or cdb[0] in _ALWAYS or self._holds(nexus):
            return True
        if kind in _FOR_REGISTRANTS and nexus in self._keys:
            return True
        return kind not in _EXCLUSIVE and cdb[0] in _READS

    def _holds(self, nexus: str) -> bool:
        if self._type in _OF_ALL:
            return nexus in self._keys
        return self._type is not None and nexus == self._holder

    def report(self, action: int) -> bytes:
        """Return the data of PERSISTENT RESERVE IN; raises :class:`CheckCondition`."""
        head = self._generation.to_bytes(4, "big")
        match action:
            case 0:  # READ KEYS
                keys = b"".join(key.to_bytes(8, "big") for key in self._keys.values())
                return head + len(keys).to_bytes(4, "big") + keys
            case 1:  # READ RESERVATION
                if self._type is None:
                    return head + bytes(4)
                key = 0 if self._type in _OF_ALL else self._keys[self._holder]
                body = key.to_bytes(8, "big") + bytes(5) + bytes((self._type, 0, 0))
                return head + len(body).to_bytes(4, "big") + body
            case 2:  # REPORT CAPABILITIES: TMV, and a bit for each type
                return bytes((0, 8, 0, 0x80, 0xEA, 0x01, 0, 0))
            case 3:  # READ FULL STATUS
                entries = b"".join(self._full_status(nexus) for nexus in self._keys)
                return head + len(entries).to_bytes(4, "big") + entries
            case _:
                raise CheckCondition(Sense.INVALID_FIELD)

    def _full_status(self, nexus: str) -> bytes:
        holds = self._holds(nexus)
        # A transport id of the SAS form, whose 8 bytes of address are of the nexus' name.
        transport = bytes((6, 0, 0, 0)) + nexus.encode()[:8].ljust(8, b"\0") + bytes(12)
        entry = self._keys[nexus].to_bytes(8, "big") + bytes(4)
        entry += bytes((1 if holds else 0, self._type if holds and self._type else 0)) + bytes(4)
        return entry + (1).to_bytes(2, "big") + len(transport).to_bytes(4, "big") + transport

    def change(self, nexus: str, action: int, scope_and_type: int, parameters: bytes) -> None:
        """Carry out PERSISTENT RESERVE OUT.

        Raises :class:`ReservationConflict` and :class:`CheckCondition`.
        """
        if len(parameters) != _PARAMETERS:
            raise CheckCondition(Sense.PARAMETER_LENGTH)
        if parameters[20] & (_SPEC_I_PT | _APTPL):
            raise CheckCondition(Sense.INVALID_PARAMETERS)
        key = int.from_bytes(parameters[:8], "big")
        new_key = int.from_bytes(parameters[8:16], "big")
        try:
            wanted = Action(action)
        except ValueError:
            raise CheckCondition(Sense.INVALID_FIELD) from None
        match wanted:
            case Action.REGISTER:
                if self._keys.get(nexus, 0) != key:
                    raise ReservationConflict
                self._register(nexus, new_key)
                return
            case Action.REGISTER_AND_IGNORE:
                self._register(nexus, new_key)
                return
            case _:
                pass
        if nexus not in self._keys or self._keys[nexus] != key:
            raise ReservationConflict
        match wanted:
            case Action.RESERVE:
                self._reserve(nexus, _type(scope_and_type))
            case Action.RELEASE:
                if self._holds(nexus):
                    if self._type != _type(scope_and_type):
                        raise CheckCondition(Sense.INVALID_RELEASE)
                    self._holder, self._type = "", None
            case Action.CLEAR:
                self._keys.clear()
                self._holder, self._type = "", None
                self._generation += 1
            case Action.PREEMPT | Action.PREEMPT_AND_ABORT:
                self._preempt(nexus, new_key, scope_and_type)

    def _register(self, nexus: str, key: int) -> None:
        if key:
            if nexus not in self._keys and len(self._keys) >= MAX_KEYS:
                raise CheckCondition(Sense.NO_REGISTRATION_ROOM)
            self._keys[nexus] = key
        elif self._keys.pop(nexus, None) is not None:
            last = self._type in _OF_ALL and not self._keys
            if last or (self._type not in _OF_ALL and self._holder == nexus):
                self._holder, self._type = "", None
        self._generation += 1

    def _reserve(self, nexus: str, kind: Type) -> None:
        if self._type is None:
            self._holder, self._type = nexus, kind
        elif not self._holds(nexus) or self._type != kind:
            raise ReservationConflict

    def _preempt(self, nexus: str, victim: int, scope_and_type: int) -> None:
        taken = self._type is not None and (
            victim == 0 if self._type in _OF_ALL else self._keys.get(self._holder) == victim
        )
        if not victim and not taken:
            raise CheckCondition(Sense.INVALID_PARAMETERS)
        kind = _type(scope_and_type) if taken else None
        gone = [
            other
            for other, key in self._keys.items()
            if other != nexus and (key == victim or (taken and not victim))
        ]
        if not gone and not taken:
            raise ReservationConflict
        for other in gone:
            del self._keys[other]
        if kind is not None:
            self._holder, self._type = nexus, kind
        self._generation += 1


def _type(scope_and_type: int) -> Type:
    if scope_and_type >> 4:
        raise CheckCondition(Sense.INVALID_FIELD)
    try:
        return Type(scope_and_type & 0x0F)
    except ValueError:
        raise CheckCondition(Sense.INVALID_FIELD) from None
