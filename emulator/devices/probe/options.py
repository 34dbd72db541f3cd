# SPDX-License-Identifier: MIT
"""The options of a probe in a machine's configuration: what sort of VSP it is to play.

They are not the guest's business and stand in no snapshot, so that a machine can be saved with one
set of them and restored with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from emulator.devices.base import DeviceStateError


class RestoreTrial(StrEnum):
    """What the probe's EvtRestorePacket does wrong, for each packet unless it says otherwise."""

    ALLOCATE = "allocate"
    """It has no packet object, as where VmbPacketAllocate returned NULL, and fails."""
    LIB_BUFFER = "lib-buffer"
    """It hands VmbPacketRestore a LibBuf that is a byte short, frees the packet, and fails."""
    NOT_RESTORED = "not-restored"
    """It succeeds without having restored the packet."""
    THIRD = "third"
    """It fails for the third packet."""


class ProbeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Options of one probe; sizes are in bytes."""

    pair: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] = 1
    """The number that its two channels share; a second probe of a machine has another."""
    force_new: bool = False
    """Offer the channels with FORCE_NEW_CHANNEL: a restore takes nothing of them."""
    packet_callbacks: bool = True
    """Register the save and restore packet callbacks."""
    maximum_packet_size: Annotated[int, msgspec.Meta(ge=256, le=16_384)] = 4096
    maximum_packet_count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    restore_trial: RestoreTrial | None = None


def read_options(name: str, options: Mapping[str, Any]) -> ProbeOptions:
    """Check the options of the probe ``name``; raises :class:`DeviceStateError`."""
    try:
        return msgspec.convert(dict(options), ProbeOptions)
    except msgspec.ValidationError as error:
        raise DeviceStateError(f"device {name}: {error}") from error
