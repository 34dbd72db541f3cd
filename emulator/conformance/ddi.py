# SPDX-License-Identifier: MIT
"""Every function, callback and flag of KMCL (V1 to V5), and what stands for it here.

``python -m emulator.conformance.ddi > docs/kmcl.md`` makes the page. A test holds the page, the
names and the scenarios against what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulator.conformance.ddi_types import CALLBACKS, FLAGS
from emulator.conformance.switches import NOTICED
from emulator.kmcl.inferred import SWITCHES

CHANNEL: Final = "emulator.kmcl.channel.ServerChannel."
OUT: Final = "emulator.kmcl.packets.OutgoingPacket."
IN: Final = "emulator.kmcl.packets.IncomingPacket."

IN_CALLBACK: Final = "INVALID_DEVICE_STATE: in a state callback"
VOID: Final = "the DDI returns nothing"


@dataclass(frozen=True)
class Function:
    """One DDI. ``python`` is where it is; without one, ``note`` says why there is none."""

    ddi: str
    python: str = ""
    statuses: str = ""
    basis: str = "D"
    scenarios: tuple[int, ...] = ()
    note: str = ""
    switches: tuple[str, ...] = ()


FUNCTIONS: Final = (
    # Life cycle.
    Function("VmbChannelAllocate", CHANNEL + "__init__", "", "D", (36,)),
    Function("VmbChannelInitialize", note="Python has the memory"),
    Function("VmbSizeofChannel", note="Python has the memory"),
    Function(
        "VmbChannelEnable",
        CHANNEL + "enable",
        "INVALID_DEVICE_STATE: enabled, in a state callback, nothing to call; "
        "INVALID_PARAMETER: no interface id",
        "DI",
        (36, 41),
    ),
    Function("VmbChannelDisable", CHANNEL + "disable", IN_CALLBACK, "DI", (63, 69), VOID),
    Function(
        "VmbChannelStart",
        CHANNEL + "start",
        "INVALID_DEVICE_STATE: Disabled, in a state callback, in a save, after a failed restore",
        "DI",
        (37, 39),
        VOID,
        ("first_packets",),
    ),
    Function(
        "VmbChannelPause",
        CHANNEL + "pause",
        IN_CALLBACK,
        "DI",
        (35, 36, 37),
        VOID,
        ("pause", "pending"),
    ),
    Function(
        "VmbChannelCleanup",
        CHANNEL + "cleanup",
        "INVALID_DEVICE_STATE: not Disabled",
        "DI",
        (26,),
        VOID,
    ),
    # Configuration.
    Function("VmbChannelInitSetFlags", CHANNEL + "init_set_flags", "2: unknown bits", "D", (70,)),
    Function("VmbChannelInitSetFriendlyName", CHANNEL + "init_set_friendly_name", "2: named"),
    Function(
        "VmbChannelInitSetMaximumPacketSize",
        CHANNEL + "init_set_maximum_packet_size",
        "2: zero, or beyond the MTU",
        "DI",
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
        "2: has one, or the primary is none; 3: bad index",
        "DI",
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
    Function(
        "VmbChannelGetInterfaceInstance",
        CHANNEL + "get_interface_instance",
        "INVALID_PARAMETER: none set",
        "DI",
        (),
        VOID,
    ),
    Function("VmbChannelGetTargetDeviceObject", note="Windows device objects"),
    Function("VmbChannelGetParentDeviceObject", note="Windows device objects"),
    Function(
        "VmbChannelSetTransactionQuota",
        CHANNEL + "set_transaction_quota",
        "INVALID_PARAMETER: zero",
        "DI",
        (51,),
        VOID,
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
        "INVALID_DEVICE_STATE, NOT_SUPPORTED, EvtSavePacket's",
        "DI",
        (4, 5, 9),
        "",
        ("save_packet", "unopened", "unregistered"),
    ),
    Function(
        "VmbChannelSaveContinue",
        CHANNEL + "save_continue",
        "BUFFER_OVERFLOW, BUFFER_TOO_SMALL, EvtSavePacket's; INVALID_DEVICE_STATE: no SaveBegin; "
        "DEVICE_REMOVED: closed since",
        "DI",
        (5, 6, 7, 8, 20, 21, 22),
        "",
        ("save_packet", "growing", "save_size"),
    ),
    Function(
        "VmbChannelSaveEnd",
        CHANNEL + "save_end",
        "",
        "DI",
        (9, 10, 12),
        "before the end it gives the save up",
    ),
    Function(
        "VmbChannelRestoreFromBuffer",
        CHANNEL + "restore_from_buffer",
        "MORE_PROCESSING_REQUIRED, DATA_ERROR, CRC_ERROR, REVISION_MISMATCH, INVALID_PARAMETER, "
        "INVALID_DEVICE_STATE, UNSUCCESSFUL, EvtRestorePacket's",
        "DI",
        (23, 24, 25, 26, 27, 33, 34),
        "docs/kmcl-state.md",
        ("opened", "unregistered", "unrestored", "failed_queue"),
    ),
    Function(
        "VmbPacketRestore",
        OUT + "restore",
        "INVALID_PARAMETER; INVALID_DEVICE_STATE: not in EvtRestorePacket",
        "DI",
        (28, 30),
    ),
    # Outgoing packets.
    Function(
        "VmbPacketAllocate",
        CHANNEL + "packet_allocate",
        "INSUFFICIENT_RESOURCES",
        "D",
        (29,),
        "the DDI returns NULL",
    ),
    Function("VmbPacketInitialize", note="Python has the memory"),
    Function("VmbChannelSizeofPacket", note="Python has the memory"),
    Function(
        "VmbPacketFree", OUT + "free", "INVALID_PARAMETER: in use, or freed", "DI", (18,), VOID
    ),
    Function("VmbPacketSetPointer", note="OutgoingPacket.context"),
    Function("VmbPacketGetPointer", note="OutgoingPacket.context"),
    Function("VmbPacketGetChannel", note="the VSP has it"),
    Function("VmbPacketGetInlinePacketContextPointer", note="OutgoingPacket.context"),
    Function("VmbPacketSetCompletionRoutine", OUT + "set_completion_routine", "", "D", (15, 46)),
    Function("VmbPacketSetCompletionRoutineEx", OUT + "set_completion_routine_ex"),
    Function(
        "VmbPacketSend",
        OUT + "send",
        "INVALID_DEVICE_STATE: in use, Disabled, after EvtSuspend, in a save; INVALID_BUFFER_SIZE; "
        "INVALID_PARAMETER: a transaction on a pipe",
        "DI",
        (38, 45),
        "",
        ("retired", "unknown"),
    ),
    Function("VmbPacketSendWithExternalMdl", note="for clients only"),
    Function("VmbPacketSendWithExternalPfns", note="for clients only"),
    Function(
        "VmbChannelSendSynchronousRequest",
        CHANNEL + "send_synchronous_request",
        "BUFFER_OVERFLOW, DEVICE_REMOVED; INVALID_PARAMETER: a time-out, or to wait",
        "DI",
        (63,),
        "as the root may call it: without waiting",
    ),
    # Incoming packets.
    Function(
        "VmbChannelPacketComplete",
        IN + "complete",
        "INVALID_PARAMETER: has ended; INVALID_BUFFER_SIZE",
        "DI",
        (35, 53),
        VOID,
    ),
    Function(
        "VmbChannelPacketFail",
        IN + "fail",
        "INVALID_PARAMETER: has ended",
        "DI",
        (52,),
        VOID,
        ("failed_queue",),
    ),
    Function(
        "VmbChannelPacketDeferToPassive",
        IN + "defer",
        "INVALID_PARAMETER: has ended; INVALID_DEVICE_STATE: at PASSIVE",
        "DI",
        (51,),
        VOID,
    ),
    Function(
        "VmbChannelPacketGetExternalData",
        IN + "external_data",
        "PENDING (ExternalDataPending), GpaError; INVALID_PARAMETER: has ended",
        "DI",
        (53, 54, 55),
        "",
        ("pending",),
    ),
    Function("VmbChannelPacketGetClientContext", note="IncomingPacket.context"),
    # GPADLs.
    Function(
        "VmbChannelMapGpadl",
        CHANNEL + "map_gpadl",
        "INVALID_PARAMETER: no such GPADL; INVALID_DEVICE_STATE: mapped, or being torn down",
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
Disabled. Where the DDI returns a status and Python raises, `KmclError.status` has it; where the DDI
returns nothing and Windows would assert or misbehave, the status is this library's. Basis: D
documented, I inferred, at least in part (docs/conformance.md); the numbers are scenarios there.
Beside them, tests/unit/kmcl tests each function. Switches: see the end.

## Functions

| DDI | here | statuses | basis | scenarios | switches | note |
|---|---|---|---|---|---|---|
"""

_CALLBACKS_HEAD: Final = """
## Callbacks

The `_EX` variants (interface V5) get a context as second argument: the setters with `_ex`, and
`StateChangeCallbacks.ex`.

| DDI | here | basis | scenarios | switches | note |
|---|---|---|---|---|---|
"""

_FLAGS_HEAD: Final = """
## Flags

| DDI | value | here | basis | note |
|---|---|---|---|---|
"""

_SWITCHES_HEAD: Final = """
## Switches

Where no document decides and two readings are plausible, `ServerChannel(port, Inferred(...))` does
the one or the other; the first is the default. `vmbus conformance run --with SWITCH=READING` runs
the scenarios on the other reading: those that notice record what they see, all others must hold.
`vmbus conformance explore` draws both. Nothing of this is in a saved stream, which has what
happened: a channel of either reading restores a stream of the other. What else is inferred and has
no switch is in docs/kmcl-state.md, section 4.

| switch | question | readings | what they rest on | who would notice | scenarios |
|---|---|---|---|---|---|
"""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |\n"


def markdown() -> str:
    """Return the page."""
    rows: list[str] = []
    for function in FUNCTIONS:
        owner, _, name = function.python.rpartition(".")
        here = f"`{owner.rpartition('.')[2]}.{name}`" if name else "–"
        rows.append(
            _row(
                f"`{function.ddi}`",
                here.replace(".__init__", "()"),
                function.statuses,
                "/".join(function.basis) if name else "",
                ", ".join(map(str, function.scenarios)),
                ", ".join(function.switches),
                function.note,
            )
        )
    rows.append(_CALLBACKS_HEAD)
    rows += [
        _row(
            f"`{callback.ddi}`",
            f"`{callback.here}`" if callback.here else "–",
            "/".join(callback.basis),
            ", ".join(map(str, callback.scenarios)),
            ", ".join(callback.switches),
            callback.note,
        )
        for callback in CALLBACKS
    ]
    rows.append(_FLAGS_HEAD)
    rows += [
        _row(
            f"`{flag.ddi}`",
            f"{flag.value:#x}",
            f"`{flag.here}`" if flag.here else "–",
            "/".join(flag.basis),
            flag.note,
        )
        for flag in FLAGS
    ]
    rows.append(_SWITCHES_HEAD)
    for switch in SWITCHES:
        readings = "; ".join(f"`{each.value}`: {each.means}" for each in switch.kind)
        noticing = sorted(NOTICED[switch.name])
        rows.append(
            _row(
                f"`{switch.name}`",
                switch.question,
                readings,
                switch.source,
                switch.noticed,
                ", ".join(map(str, noticing)) or "–",
            )
        )
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    print(markdown(), end="")
