# SPDX-License-Identifier: MIT
"""What the probe device has of its own in a snapshot, and with each of its saved packets."""

from __future__ import annotations

import msgspec

from emulator.devices.probe.flight import Flight
from emulator.devices.probe.gpadls import GpadlNote
from emulator.devices.probe.ledger import HostLedger


class PacketContext(msgspec.Struct, frozen=True, array_like=True):
    """What a host packet means to the device; saved with the packet."""

    role: int
    seq: int
    crc: int
    wants_answer: bool
    padding: bytes = b""
    """Of no meaning; makes it long (:class:`~emulator.devices.probe.trials.SaveTrial`)."""


class ProbeState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is the device's own in a snapshot."""

    ledger: HostLedger
    flight: Flight
    guest: str
    control_seq: int
    talking: bool
    frozen: bool
    finishing: bool
    faults: list[str]
    guest_version: int = 1
    gpadls: dict[int, GpadlNote] = {}
