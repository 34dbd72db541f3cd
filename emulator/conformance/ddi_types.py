# SPDX-License-Identifier: MIT
"""Every callback and flag of KMCL, and what stands for it here: for the page of ``ddi``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Callback:
    """One callback type, and the field or type of emulator.kmcl.config that stands for it."""

    ddi: str
    here: str
    basis: str
    scenarios: tuple[int, ...]
    note: str
    switches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flag:
    """One flag of the header; ``here`` is its member or argument, empty if there is none."""

    ddi: str
    value: int
    here: str
    basis: str
    note: str


CALLBACKS: Final = (
    Callback(
        "EVT_VMB_CHANNEL_OPENED",
        "StateChangeCallbacks.opened",
        "DI",
        (36, 40),
        "a failure makes the guest's open fail",
        ("opened",),
    ),
    Callback(
        "EVT_VMB_CHANNEL_CLOSED",
        "StateChangeCallbacks.closed",
        "DI",
        (63, 68),
        "packets in use have ended by then",
        ("retired",),
    ),
    Callback(
        "EVT_VMB_CHANNEL_SUSPEND",
        "StateChangeCallbacks.suspend",
        "DI",
        (35, 38, 69),
        "sends are refused until EvtStarted",
        ("pause", "pending"),
    ),
    Callback("EVT_VMB_CHANNEL_STARTED", "StateChangeCallbacks.started", "D", (39,), ""),
    Callback(
        "EVT_VMB_CHANNEL_POST_STARTED",
        "StateChangeCallbacks.post_started",
        "DI",
        (39, 43),
        "",
        ("first_packets",),
    ),
    Callback("EVT_VMB_CHANNEL_PROCESS_PACKET", "ProcessPacket", "D", (35, 44), ""),
    Callback(
        "EVT_VMB_CHANNEL_PROCESSING_COMPLETE",
        "ProcessingComplete",
        "DI",
        (),
        "at the end of what was read in one go",
    ),
    Callback(
        "EVT_VMB_PACKET_COMPLETION_ROUTINE",
        "CompletionRoutine",
        "DI",
        (46, 63),
        "set_completion_routine",
        ("retired",),
    ),
    Callback(
        "EVT_VMB_CHANNEL_SAVE_PACKET",
        "SavePacket",
        "DI",
        (13, 14, 15, 16, 17, 18, 19, 20, 21),
        "",
        ("save_packet", "growing", "save_size"),
    ),
    Callback(
        "EVT_VMB_CHANNEL_RESTORE_PACKET",
        "RestorePacket",
        "DI",
        (28, 29, 31, 32),
        "",
        ("save_size", "unrestored"),
    ),
    Callback("EVT_VMB_CHANNEL_PNP_FAILURE", "", "", (), "for clients"),
)
"""The ``_EX`` variants of interface V5 are these, with a context as the second argument."""

_INIT: Final = "VMBUS_CHANNEL_INIT_FLAG_"
_SERVER: Final = "VMBUS_SERVER_CHANNEL_INIT_FLAG_"
_FORMAT: Final = "VMBUS_CHANNEL_FORMAT_FLAG_"

FLAGS: Final = (
    Flag(_INIT + "IS_PIPE", 1, "InitFlags.IS_PIPE", "D", "scenario 70"),
    Flag(
        _SERVER + "LOOPBACK_OFFER",
        1,
        "ServerInitFlags.LOOPBACK_OFFER",
        "DI",
        "NOT_SUPPORTED: there is no VMBus of the root to loop back to",
    ),
    Flag(
        _SERVER + "ENUMERATE_DEVICE_INTERFACE",
        2,
        "ServerInitFlags.ENUMERATE_DEVICE_INTERFACE",
        "D",
        "in the offer",
    ),
    Flag(_SERVER + "OFFER_AS_PIPE", 4, "ServerInitFlags.OFFER_AS_PIPE", "D", "in the offer"),
    Flag(
        _SERVER + "FORCE_NEW_CHANNEL",
        8,
        "ServerInitFlags.FORCE_NEW_CHANNEL",
        "DI",
        "scenario 60",
    ),
    Flag(
        _SERVER + "TLNPI_PROVIDER_OFFER",
        16,
        "ServerInitFlags.TLNPI_PROVIDER_OFFER",
        "D",
        "in the offer",
    ),
    Flag(_FORMAT + "WAIT_FOR_COMPLETION", 1, "OutgoingPacket.send(wait_for_completion=)", "D", ""),
    Flag(_FORMAT + "FORCE_MDL_LENGTH", 2, "", "", "for clients: a server sends no external data"),
    Flag(_FORMAT + "PAGED_BUFFER", 4, "", "", "Python has the memory"),
    Flag(_FORMAT + "DATA_IN_ONLY", 8, "", "", "for clients"),
    Flag(_FORMAT + "DATA_OUT_ONLY", 16, "", "", "for clients"),
    Flag(
        "VMBUS_CHANNEL_GPADL_FLAG_READ_ONLY",
        1,
        "ServerChannel.map_gpadl(read_only=)",
        "DI",
        "a write raises; that the guest made it read-only is not in its GPADL message",
    ),
    Flag(
        "VMBUS_CHANNEL_PROCESS_PACKET_FLAG_EXTERNAL_DATA",
        1,
        "IncomingPacket.external",
        "D",
        "not empty",
    ),
    Flag(
        "VMBUS_CHANNEL_PACKET_EXTERNAL_DATA_FLAG_READ_ONLY",
        1,
        "IncomingPacket.external_data(read_only=)",
        "D",
        "views that cannot be written",
    ),
)
