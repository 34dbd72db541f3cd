# SPDX-License-Identifier: MIT
"""What a storage device has of its own in a snapshot. No request: a pause has drained them all."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from emulator.devices.storage.backend import Stamp
from emulator.devices.storage.options import LunOptions
from emulator.devices.storage.reservations import SavedReservations


class Phase(StrEnum):
    """How far the guest has come with its initialisation, in the order of it."""

    BEGIN = "begin"
    """BEGIN_INITIALIZATION is awaited."""
    VERSION = "version"
    PROPERTIES = "properties"
    END = "end"
    """Sub-channels may be asked for, then END_INITIALIZATION."""
    READY = "ready"


class LunState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One LUN; ``options`` is how it was opened, for one that was plugged while the guest ran."""

    options: LunOptions
    uuid: str
    stamp: Stamp | None
    attentions: list[str]
    reservations: SavedReservations
    stopped: bool = False
    removal_prevented: bool = False
    event: int = 0


class StorageState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole controller."""

    phase: Phase
    version: int
    sub_channels: int
    """How many the guest has been offered."""
    luns: list[LunState]
    rescan: bool
    """The guest has still to be told that its LUNs have changed."""
