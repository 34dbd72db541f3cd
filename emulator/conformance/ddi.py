# SPDX-License-Identifier: MIT
"""Every function of KMCL's server interface (V1 to V5), and what stands for it here.

``python -m emulator.conformance.ddi > docs/kmcl.md`` makes the page. A test holds the page, the
names and the scenarios against what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CHANNEL: Final = "emulator.kmcl.channel.ServerChannel."
OUT: Final = "emulator.kmcl.packets.OutgoingPacket."
IN: Final = "emulator.kmcl.packets.IncomingPacket."
CALLBACKS: Final = "emulator.kmcl.config.StateChangeCallbacks"

CONFIGURATION: Final = "INVALID_PARAMETER_1 unless Disabled"


@dataclass(frozen=True)
class Function:
    """One DDI. ``python`` is where it is; without one, ``note`` says why there is none."""

    ddi: str
    python: str = ""
    statuses: str = ""
    basis: str = "D"
    scenarios: tuple[int, ...] = ()
    note: str = ""


FUNCTIONS: Final = (
    # Life cycle.
    Function("VmbChannelAllocate", CHANNEL + "__init__", "", "D", (36,)),
    Function("VmbChannelInitialize", note="Python has the memory"),
    Function("VmbSizeofChannel", note="Python has the memory"),
    Function("VmbChannelEnable", CHANNEL + "enable", "", "D", (36, 41)),
    Function("VmbChannelDisable", CHANNEL + "disable", "", "D", (63, 69)),
    Function("VmbChannelStart", CHANNEL + "start", "", "D", (37, 39)),
    Function("VmbChannelPause", CHANNEL + "pause", "", "D", (35, 36, 37)),
    Function("VmbChannelCleanup", CHANNEL + "cleanup", "", "D", (26,)),
    # Configuration.
    Function("VmbChannelInitSetFlags", CHANNEL + "init_set_flags", "2: unknown bits", "D", (70,)),
    Function("VmbChannelInitSetFriendlyName", CHANNEL + "init_set_friendly_name", "2: named"),
    Function(
        "VmbChannelInitSetMaximumPacketSize",
        CHANNEL + "init_set_maximum_packet_size",
        "2: zero",
        "D",
        (33,),
    ),
    Function(
        "VmbChannelInitSetMaximumPacketCount",
        CHANNEL + "init_set_maximum_packet_count",
        "2: zero",
        "DI",
        (33,),
        "bites in VmbPacketAllocate",
    ),
    Function(
        "VmbChannelInitSetMaximumExternalData",
        CHANNEL + "init_set_maximum_external_data",
        "2, 3: zero",
        "DI",
        (),
        "a packet beyond it stops the queue",
    ),
    Function("VmbChannelInitSetClientContextSize", note="IncomingPacket.context is any object"),
    Function(
        "VmbChannelInitSetInlinePacketContextSize", note="OutgoingPacket.context is any object"
    ),
    Function(
        "VmbChannelInitSetBounceBufferSizes",
        CHANNEL + "init_set_bounce_buffer_sizes",
        "2, 3, 4: not pages",
        "D",
        (),
        "checked, without effect: a server bounces nothing",
    ),
    Function(
        "VmbChannelInitSetProcessPacketCallbacks", CHANNEL + "init_set_process_packet_callbacks"
    ),
    Function(
        "VmbChannelInitSetProcessPacketCallbacksEx",
        CHANNEL + "init_set_process_packet_callbacks_ex",
    ),
    Function(
        "VmbChannelInitSetStateChangeCallbacks",
        CHANNEL + "init_set_state_change_callbacks",
        "",
        "D",
        (37, 39),
        "VMB_CHANNEL_STATE_CHANGE_CALLBACKS_V5 is StateChangeCallbacks.ex",
    ),
    Function(
        "VmbChannelInitSetPrimaryChannel",
        CHANNEL + "init_set_primary_channel",
        "2: has one; 3: bad index",
        "D",
        (41,),
    ),
    Function(
        "VmbServerChannelInitSetFlags",
        CHANNEL + "server_init_set_flags",
        "2: unknown bits; NOT_SUPPORTED: loopback",
        "DI",
        (60,),
    ),
    Function(
        "VmbServerChannelInitSetMmioMegabytes",
        CHANNEL + "server_init_set_mmio_megabytes",
        "2: both zero",
    ),
    Function("VmbServerChannelInitSetTargetInterfaceId", CHANNEL + "init_set_target_interface_id"),
    Function(
        "VmbServerChannelInitSetTargetVtl",
        CHANNEL + "server_init_set_target_vtl",
        "2: no VTL; NOT_SUPPORTED: 1, 2",
        "DI",
    ),
    Function("VmbServerChannelInitSetVmbusHandle", note="the port given to ServerChannel"),
    Function("VmbConvertVmbusHandleToKernelHandle", note="there is one process"),
    Function(
        "VmbServerChannelInitSetSaveRestorePacketCallbacks",
        CHANNEL + "init_set_save_restore_packet_callbacks",
        "",
        "D",
        (1, 2, 3, 4),
    ),
    Function(
        "VmbServerChannelInitSetSaveRestorePacketCallbacksEx",
        CHANNEL + "init_set_save_restore_packet_callbacks_ex",
        "",
        "D",
        (3,),
    ),
    # At any time.
    Function("VmbChannelSetPointer", note="ServerChannel.context"),
    Function("VmbChannelGetPointer", note="ServerChannel.context"),
    Function("VmbChannelGetInterfaceInstance", CHANNEL + "get_interface_instance"),
    Function("VmbChannelGetTargetDeviceObject", note="Windows device objects"),
    Function("VmbChannelGetParentDeviceObject", note="Windows device objects"),
    Function(
        "VmbChannelSetTransactionQuota",
        CHANNEL + "set_transaction_quota",
        "INVALID_PARAMETER: zero",
        "D",
        (51,),
    ),
    Function(
        "VmbChannelSetIncomingProcessingAtPassive",
        CHANNEL + "set_incoming_processing_at_passive",
        "",
        "D",
        (51,),
    ),
    Function("VmbChannelSetAllowableDpcCpuUsage", note="there are no DPCs; a batch has its limit"),
    # Save and restore.
    Function(
        "VmbChannelSaveBegin",
        CHANNEL + "save_begin",
        "INVALID_DEVICE_STATE, NOT_SUPPORTED",
        "DI",
        (4, 5, 9),
    ),
    Function(
        "VmbChannelSaveContinue",
        CHANNEL + "save_continue",
        "BUFFER_OVERFLOW, BUFFER_TOO_SMALL, EvtSavePacket's",
        "D",
        (5, 6, 7, 8, 20, 21, 22),
    ),
    Function("VmbChannelSaveEnd", CHANNEL + "save_end", "", "D", (9, 10, 12)),
    Function(
        "VmbChannelRestoreFromBuffer",
        CHANNEL + "restore_from_buffer",
        "MORE_PROCESSING_REQUIRED, DATA_ERROR, CRC_ERROR, REVISION_MISMATCH, EvtRestorePacket's",
        "DI",
        (23, 24, 25, 26, 27, 33, 34),
    ),
    Function("VmbPacketRestore", OUT + "restore", "INVALID_PARAMETER", "DI", (28, 30)),
    # Outgoing packets.
    Function(
        "VmbPacketAllocate", CHANNEL + "packet_allocate", "INSUFFICIENT_RESOURCES", "D", (29,)
    ),
    Function("VmbPacketInitialize", note="Python has the memory"),
    Function("VmbChannelSizeofPacket", note="Python has the memory"),
    Function("VmbPacketFree", OUT + "free", "", "D", (18,)),
    Function("VmbPacketSetPointer", note="OutgoingPacket.context"),
    Function("VmbPacketGetPointer", note="OutgoingPacket.context"),
    Function("VmbPacketGetChannel", note="the VSP has it"),
    Function("VmbPacketGetInlinePacketContextPointer", note="OutgoingPacket.context"),
    Function("VmbPacketSetCompletionRoutine", OUT + "set_completion_routine", "", "D", (15, 46)),
    Function("VmbPacketSetCompletionRoutineEx", OUT + "set_completion_routine_ex"),
    Function(
        "VmbPacketSend", OUT + "send", "INVALID_DEVICE_STATE, INVALID_BUFFER_SIZE", "DI", (38, 45)
    ),
    Function("VmbPacketSendWithExternalMdl", note="for clients only"),
    Function("VmbPacketSendWithExternalPfns", note="for clients only"),
    Function(
        "VmbChannelSendSynchronousRequest",
        CHANNEL + "send_synchronous_request",
        "BUFFER_OVERFLOW, DEVICE_REMOVED, INVALID_PARAMETER",
        "D",
        (63,),
        "as the root may call it: without waiting",
    ),
    # Incoming packets.
    Function("VmbChannelPacketComplete", IN + "complete", "", "D", (35, 53)),
    Function("VmbChannelPacketFail", IN + "fail", "", "D", (52,)),
    Function("VmbChannelPacketDeferToPassive", IN + "defer", "", "DI", (51,)),
    Function(
        "VmbChannelPacketGetExternalData",
        IN + "external_data",
        "PENDING (ExternalDataPending), GpaError",
        "DI",
        (53, 54, 55),
    ),
    Function("VmbChannelPacketGetClientContext", note="IncomingPacket.context"),
    # GPADLs.
    Function(
        "VmbChannelMapGpadl",
        CHANNEL + "map_gpadl",
        "INVALID_PARAMETER, INVALID_DEVICE_STATE",
        "DI",
        (56,),
    ),
    Function("VmbChannelUnmapGpadl", CHANNEL + "unmap_gpadl", "INVALID_PARAMETER", "DI", (56,)),
    # For clients.
    Function("VmbChannelCreateGpadl", note="for clients; the model guest's is make_gpadl"),
    Function("VmbChannelCreateGpadlFromBuffer", note="for clients"),
    Function("VmbChannelCreateGpadlFromMdl", note="for clients"),
    Function("VmbChannelCreateGpadlFromPfnList", note="for clients"),
    Function("VmbChannelDeleteGpadl", note="for clients; the model guest's is teardown"),
    Function("VmbChannelGetSystemAddressForGpadl", note="for clients"),
    Function("VmbChannelGetMmioSpace", note="for clients"),
    Function("VmbChannelSetInterruptLatency", note="for clients"),
    Function("VmbChannelAllocateBounceBuffer", note="for clients; NOT_SUPPORTED on a server"),
    Function("VmbClientChannelInitSetRingBufferPageCount", note="for clients"),
    Function("VmbClientChannelInitSetTargetPnp", note="for clients"),
    Function("VmbClientChannelInitSetTargetProcessorIndex", note="for clients"),
)
"""In the order of the page."""

_HEAD: Final = """<!-- SPDX-License-Identifier: MIT -->
# KMCL: what stands for each function

Made by `python -m emulator.conformance.ddi > docs/kmcl.md`. Statuses beside SUCCESS; "2: zero" is
STATUS_INVALID_PARAMETER_2. The InitSet functions return INVALID_PARAMETER_1 unless the channel is
Disabled. Where the DDI returns a status and Python raises, `KmclError.status` has it. Basis: D
documented, I inferred (docs/conformance.md); the numbers are scenarios there. Beside them,
tests/unit/kmcl tests each function.

| DDI | here | statuses | basis | scenarios | note |
|---|---|---|---|---|---|
"""


def markdown() -> str:
    """Return the page."""
    rows: list[str] = []
    for function in FUNCTIONS:
        owner, _, name = function.python.rpartition(".")
        here = f"`{owner.rpartition('.')[2]}.{name}`" if name else "–"
        cells = (
            f"`{function.ddi}`",
            here.replace(".__init__", "()"),
            function.statuses,
            "/".join(function.basis) if name else "",
            ", ".join(map(str, function.scenarios)),
            function.note,
        )
        rows.append("| " + " | ".join(cells) + " |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    print(markdown(), end="")
