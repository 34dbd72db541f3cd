# SPDX-License-Identifier: MIT
"""What can be wrong with a ring, split by who is to blame.

::

    RingCorrupt      the guest broke a rule: end its channel, nothing else
    PacketTooLarge   the caller's packet can never fit this ring
"""

from enum import Enum

from emulator.wire.packet import PacketRule

__all__ = ["PacketTooLarge", "RingCorrupt", "RingRule"]


class RingRule(Enum):
    """The rules that the guest's words in a control page must keep; see also `PacketRule`."""

    IN_RANGE = "`in` is below the ring size and a multiple of 8"
    OUT_RANGE = "`out` is below the ring size and a multiple of 8"
    IN_ADVANCE = "`in` moves forward, and not past what the host has released"
    OUT_ADVANCE = "`out` moves forward, and not past what the host has published"
    PACKET_START = "what is published is whole packets: at least a descriptor and a trailer"


class RingCorrupt(Exception):
    """The guest broke `rule` in one of its rings. The ring end is unchanged, and useless."""

    def __init__(self, rule: RingRule | PacketRule, detail: str) -> None:
        super().__init__(f"{detail}; the rule: {rule.value}")
        self.rule = rule
        self.detail = detail


class PacketTooLarge(Exception):
    """A packet of `size` bytes on the ring can never fit: `capacity` is the most it takes."""

    def __init__(self, size: int, capacity: int) -> None:
        super().__init__(
            f"a packet of {size} bytes, but the ring takes {capacity}; send less at once"
        )
        self.size = size
        self.capacity = capacity
