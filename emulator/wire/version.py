# SPDX-License-Identifier: MIT
"""VMBus protocol versions and the feature flags of the latest."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Version(IntEnum):
    """Protocol versions, major in the high 16 bits (Linux: include/linux/hyperv.h, VERSION_*)."""

    V1 = 0x0000000D
    """0.13, Windows Server 2008."""
    WIN7 = 0x00010001
    WIN8 = 0x00020004
    """2.4: an event connection of its own for each channel."""
    WIN8_1 = 0x00030000
    """3.0: messages go to the VP that the guest names."""
    WIN10 = 0x00040000
    WIN10_RS3_0 = 0x00040001
    """4.1: ModifyChannel."""
    WIN10_RS3_1 = 0x00050000
    """5.0: the answer names the message connection; the guest names the SINT."""
    WIN10_RS4 = 0x00050001
    WIN10_RS5 = 0x00050002
    IRON = 0x00050003
    """5.3: ModifyChannelResponse."""
    COPPER = 0x00060000
    """6.0: feature flags."""

    def __str__(self) -> str:
        """Return "5.3" and the like."""
        return f"{self.value >> 16}.{self.value & 0xFFFF}"

    @classmethod
    def named(cls, text: str) -> Version:
        """Return the version that :meth:`__str__` writes so; raises ValueError, naming them all."""
        for version in cls:
            if str(version) == text:
                return version
        raise ValueError(f"{text} is not a VMBus version; there are {', '.join(map(str, cls))}")


class FeatureFlags(IntFlag):
    """Features negotiated from 6.0 on."""

    NONE = 0
    GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x01
    CHANNEL_INTERRUPT_REDIRECTION = 0x02
    MODIFY_CONNECTION = 0x04
    CLIENT_ID = 0x08
    CONFIDENTIAL_CHANNELS = 0x10
    PAUSE_RESUME = 0x20
    SERVER_SPECIFIED_MONITOR_PAGES = 0x40
    GPA_PINNING = 0x80


ALL_FEATURES: Final = ~FeatureFlags.NONE
GRANTED_FEATURES: Final = (
    FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    | FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION
    | FeatureFlags.MODIFY_CONNECTION
    | FeatureFlags.CLIENT_ID
    | FeatureFlags.PAUSE_RESUME
)
"""What this host grants a guest that asks for it.

Never the others: confidential channels are for guests that do not trust their host and have a
paravisor to tell them so; monitor pages are the guest's to choose, since the host has no pages of
its own in guest memory; and it pins all of guest memory by mapping it.
"""
