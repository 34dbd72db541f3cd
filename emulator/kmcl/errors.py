# SPDX-License-Identifier: MIT
"""Errors of KMCL by blame: :class:`KmclError` is the caller's, :class:`ChannelFault` the guest's.

A bad snapshot is neither: restore calls return an :class:`NtStatus` and leave the reason in
``ServerChannel.restore_failure``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from emulator.wire.ntstatus import NtStatus


class KmclError(Exception):
    """The caller used a channel or packet in a way KMCL forbids.

    ``status`` is what the DDI would return; where the DDI returns nothing (VmbChannelStart, ...)
    and real Windows would assert or misbehave, it is this library's choice of the nearest code.
    """

    def __init__(self, status: NtStatus, text: str) -> None:
        """Blame the caller with ``text``, which says what was done and what to do instead."""
        super().__init__(f"{text} ({status.name})")
        self.status = status
        self.text = text


class ExternalDataPending(Exception):
    """Guest memory of a GPA-direct packet is not there yet: STATUS_PENDING, which is no failure.

    Raised by a provider's ``external_data``; KMCL then delivers the packet once more.
    """


class FaultKind(IntEnum):
    """What ended a direction of a channel. The values are in saved streams."""

    INCOMING_RING = 1
    """The guest broke a rule of the guest-to-host ring; nothing more is read."""
    OUTGOING_RING = 2
    """The guest broke a rule of the host-to-guest ring; nothing more is written."""
    PACKET_FAILED = 3
    """The VSP found a packet malformed and called VmbChannelPacketFail; nothing more is read."""
    UNKNOWN_TRANSACTION = 4
    """A completion names a transaction that does not wait for one; nothing more is read."""
    PACKET_REFUSED = 5
    """A packet of a kind or size this channel does not take; nothing more is read."""

    @property
    def stops_reading(self) -> bool:
        """Whether the guest-to-host queue stands still until the channel is opened again."""
        return self is not FaultKind.OUTGOING_RING


@dataclass(frozen=True, slots=True)
class ChannelFault:
    """One thing the guest did to its channel, in words a person can act on."""

    kind: FaultKind
    text: str
