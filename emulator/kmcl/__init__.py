# SPDX-License-Identifier: MIT
"""KMCL: the server endpoint of a VMBus channel, after Windows' VMBus Kernel Mode Client Library.

A VSP makes a :class:`ServerChannel`, configures it while it is Disabled, enables it, starts it,
and answers :class:`IncomingPacket` objects; it sends with :class:`OutgoingPacket` objects. The
provider below implements :class:`ChannelPort`. Pure: no socket, no thread, and a clock only to
measure; calls that block in the DDI take a callback.
"""

from emulator.kmcl.channel import ChannelStats, ServerChannel
from emulator.kmcl.config import (
    ChannelPort,
    InitFlags,
    OfferFlags,
    OfferParams,
    RestoredPacket,
    SavedPacket,
    ServerInitFlags,
    StateChangeCallbacks,
)
from emulator.kmcl.errors import ChannelFault, ExternalDataPending, FaultKind, KmclError
from emulator.kmcl.inferred import Inferred, parse_inferred
from emulator.kmcl.packets import IncomingPacket, OutgoingPacket
from emulator.kmcl.save import DecodedStream, StreamError, decode_stream
from emulator.kmcl.snapshot import SaveResult
from emulator.kmcl.states import Connection, OutgoingState, Queue, Restore, Run
from emulator.kmcl.traffic import UnreadPacket

__all__ = [
    "ChannelFault",
    "ChannelPort",
    "ChannelStats",
    "Connection",
    "DecodedStream",
    "ExternalDataPending",
    "FaultKind",
    "IncomingPacket",
    "Inferred",
    "InitFlags",
    "KmclError",
    "OfferFlags",
    "OfferParams",
    "OutgoingPacket",
    "OutgoingState",
    "Queue",
    "Restore",
    "RestoredPacket",
    "Run",
    "SaveResult",
    "SavedPacket",
    "ServerChannel",
    "ServerInitFlags",
    "StateChangeCallbacks",
    "StreamError",
    "UnreadPacket",
    "decode_stream",
    "parse_inferred",
]
