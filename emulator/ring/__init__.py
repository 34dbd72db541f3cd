# SPDX-License-Identifier: MIT
"""The host's ends of the two rings of a channel, in guest memory."""

from emulator.ring.errors import PacketTooLarge, RingCorrupt, RingRule
from emulator.ring.incoming import Drained, IncomingRing, PacketAhead
from emulator.ring.outgoing import OutgoingRing
from emulator.wire.packet import Packet, PacketSummary

__all__ = [
    "Drained",
    "IncomingRing",
    "OutgoingRing",
    "Packet",
    "PacketAhead",
    "PacketSummary",
    "PacketTooLarge",
    "RingCorrupt",
    "RingRule",
]
