# SPDX-License-Identifier: MIT
"""What no document says about KMCL, where two readings are plausible: a switch for each.

A channel takes one :class:`Inferred`. Its defaults are the readings for which there is more
evidence; the others are there so that a VSP, or the author of a driver for Windows, can see what
would change if Windows did the other thing. Nothing of it is saved: a stream has what happened, and
the channel that restores it decides by its own settings.

What is inferred and has no switch here has one reading only that loses nothing: saving a channel
whose traffic flows, for instance, cannot give a stream that agrees with the rings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final, Self


class Reading(Enum):
    """One answer: its word on a command line, and what a channel does then."""

    means: str

    def __new__(cls, word: str, means: str) -> Self:
        """Make a member whose value is ``word``."""
        member = object.__new__(cls)
        member._value_ = word
        member.means = means
        return member


class PauseWaitsFor(Reading):
    """Does VmbChannelPause wait for outgoing transactions?"""

    INCOMING = "incoming", "only for incoming packets that the VSP holds"
    OUTGOING_TOO = (
        "outgoing-too",
        "first, with traffic going on, until no packet waits for the guest's completion; then "
        "EvtSuspend, and the incoming packets. Not when a fault has stopped the queue, nor when "
        "the channel closes: the guest's answers cannot come then",
    )


class OpenedOnRestore(Reading):
    """Does EvtChannelOpened run for a channel that is restored open?"""

    SKIPPED = "skipped", "no: the VSP has the saved state of the open channel"
    CALLED = (
        "called",
        "yes, when the provider makes it open; if it fails, the channel is not open, and a stream "
        "of an open one does not fit it",
    )


class SavePacketFrom(Reading):
    """From which call does EvtSavePacket run?"""

    SAVE_CONTINUE = "save-continue", "SaveContinue, packet by packet, when a chunk is built"
    SAVE_BEGIN = "save-begin", "SaveBegin, for all packets; what fails then is SaveBegin"


class UnopenedSave(Reading):
    """May a channel be saved that is offered and not open?"""

    ALLOWED = "allowed", "yes; the stream has what is queued"
    REFUSED = "refused", "no: SaveBegin returns INVALID_DEVICE_STATE; what is queued is not saved"


class UnregisteredSave(Reading):
    """What becomes of packets in use if no save and restore callbacks are registered?"""

    REFUSED = "refused", "SaveBegin returns NOT_SUPPORTED"
    OWN_STATE = (
        "own-state",
        "KMCL's own state is saved, and restored into packets that KMCL allocates; they free "
        "themselves at their end",
    )


class GrowingPacket(Reading):
    """What if BytesNeeded grows between the calls of EvtSavePacket?"""

    FAILS = "fails", "the save fails with the status of the second call"
    ASKED_AGAIN = "asked-again", "it is called again, as long as BytesNeeded grows, 8 times in all"


class SaveBufferSize(Reading):
    """Which SaveBufSize do the second call of EvtSavePacket and EvtRestorePacket get?"""

    EXACT = "exact", "BytesNeeded; at restore the bytes that were produced"
    ROUNDED_UP = (
        "rounded-up",
        "BytesNeeded rounded up to 64 bytes, both times; what was not written is 0",
    )


class UnrestoredPacket(Reading):
    """What if EvtRestorePacket succeeds and has not called VmbPacketRestore?"""

    REFUSED = "refused", "RestoreFromBuffer fails with UNSUCCESSFUL"
    DROPPED = (
        "dropped",
        "the packet is gone; one that was queued is not sent, and if the guest completes one that "
        "was in the ring, that is a completion of an unknown transaction",
    )


class FailedQueue(Reading):
    """Does a queue that VmbChannelPacketFail or a fault has stopped go on after a restore?"""

    STAYS_STOPPED = "stays-stopped", "no, not before the guest opens the channel anew"
    STARTS_AGAIN = (
        "starts-again",
        "yes, behind the packet that stopped it; a ring that is still corrupt stops it again",
    )


class PendingPacket(Reading):
    """Where is a packet whose GetExternalData has returned STATUS_PENDING?"""

    HELD = "held", "delivered once more, as the same packet, before EvtSuspend; Pause waits for it"
    IN_RING = (
        "in-ring",
        "in the ring, unread; it is read anew, as a new packet without its context, perhaps after "
        "a restore. Pause does not wait for it",
    )


class FirstPackets(Reading):
    """Does the first packet come before or after EvtChannelPostStarted?"""

    AFTER = "after", "after it"
    BEFORE = "before", "before it, if there is one in the ring"


class UnknownCompletion(Reading):
    """What if the guest completes a transaction that does not wait for it?"""

    FAULT = "fault", "the queue stops"
    DROPPED = "dropped", "nothing; it is counted"


class RetiredWith(Reading):
    """With which status do packets in use end when the channel closes?"""

    DEVICE_REMOVED = "device-removed", "STATUS_DEVICE_REMOVED"
    CANCELLED = "cancelled", "STATUS_CANCELLED"


@dataclass(frozen=True, slots=True)
class Inferred:
    """The settings of one channel; :data:`SWITCHES` has the evidence for each."""

    pause: PauseWaitsFor = PauseWaitsFor.INCOMING
    opened: OpenedOnRestore = OpenedOnRestore.SKIPPED
    save_packet: SavePacketFrom = SavePacketFrom.SAVE_CONTINUE
    unopened: UnopenedSave = UnopenedSave.ALLOWED
    unregistered: UnregisteredSave = UnregisteredSave.REFUSED
    growing: GrowingPacket = GrowingPacket.FAILS
    save_size: SaveBufferSize = SaveBufferSize.EXACT
    unrestored: UnrestoredPacket = UnrestoredPacket.REFUSED
    failed_queue: FailedQueue = FailedQueue.STAYS_STOPPED
    pending: PendingPacket = PendingPacket.HELD
    first_packets: FirstPackets = FirstPackets.AFTER
    unknown: UnknownCompletion = UnknownCompletion.FAULT
    retired: RetiredWith = RetiredWith.DEVICE_REMOVED

    def __str__(self) -> str:
        """Name what is not the default, as :func:`parse_inferred` reads it; empty if all is."""
        return " ".join(
            f"{field.name}={getattr(self, field.name).value}"
            for field in fields(self)
            if getattr(self, field.name) is not field.default
        )


DEFAULTS: Final = Inferred()


@dataclass(frozen=True, slots=True)
class Switch:
    """One field of :class:`Inferred`; the first of its readings is the default."""

    name: str
    source: str
    """What both readings rest on."""
    noticed: str
    """Which drivers would notice if Windows did the other thing."""

    @property
    def kind(self) -> type[Reading]:
        """The readings."""
        return type(getattr(DEFAULTS, self.name))

    @property
    def question(self) -> str:
        """The docstring of :attr:`kind`."""
        return self.kind.__doc__ or ""


SWITCHES: Final = (
    Switch(
        "pause",
        "the header's state model limits the wait to outstanding incoming packets; the text of "
        "VmbChannelPause says that all packets that wait for completion have completed. With the "
        "second there would be no packet in the ring for EvtSavePacket to save",
        "a VSP whose guest answers late or never, or that completes what it holds in EvtSuspend "
        "only: its Pause would not end",
    ),
    Switch(
        "opened",
        "not documented; OpenVMM's device interface does not call open on restore",
        "a VSP that resets its protocol state in EvtChannelOpened, or makes there what it needs",
    ),
    Switch(
        "save_packet",
        "Learn names SaveBegin, SaveContinue and SaveEnd together as the callers",
        "a VSP that takes SaveBegin's status for one of KMCL's, or saves while it still changes "
        "what its packets stand for",
    ),
    Switch(
        "unopened",
        "not documented; both an almost empty state and a failure fit the text of SaveBegin",
        "a VSP that saves all its channels, and one that queues packets before the guest opens",
    ),
    Switch(
        "unregistered",
        "not documented; the setter is optional, and KMCL saves its own part by itself",
        "a VSP that sends and does not register: its save fails, or its completion routines do "
        "not run after a restore",
    ),
    Switch(
        "growing",
        "EVT_VMB_CHANNEL_SAVE_PACKET names two calls; the same protocol of OID_SWITCH_NIC_SAVE is "
        "repeated",
        "a VSP whose state grows between the calls",
    ),
    Switch(
        "save_size",
        'EVT_VMB_CHANNEL_SAVE_PACKET: the second buffer has "at least" BytesNeeded bytes; what '
        "the restore gets is not documented",
        "a VSP that takes SaveBufSize at restore for the size of what it has saved",
    ),
    Switch(
        "unrestored",
        "not documented; VmbPacketRestore is something the VSP must call",
        "a VSP that drops a packet at restore on purpose",
    ),
    Switch(
        "failed_queue",
        "VmbChannelPacketFail stops the queue; whether that is saved is not documented",
        "a VSP that relies on the queue to stand still, or on a restore to set it going",
    ),
    Switch(
        "pending",
        "the header: the packet is delivered again; what Pause does about it is not documented",
        "a VSP that keeps something in the packet's context between the two calls, or whose "
        "memory comes only after the save",
    ),
    Switch(
        "first_packets",
        "EVT_VMB_CHANNEL_POST_STARTED: process callbacks may already have run",
        "a VSP that negotiates in EvtChannelPostStarted and takes the first packet for an answer",
    ),
    Switch(
        "unknown",
        "not documented; UEFI's client (mu_msvm) stops, Linux' pci-hyperv warns and drops",
        "a VSP whose guest completes twice, or completes what was lost",
    ),
    Switch(
        "retired",
        "a failure, of a value that is not documented; DEVICE_REMOVED is documented for "
        "VmbChannelSendSynchronousRequest only",
        "a VSP that compares the status in its completion routine",
    ),
)
"""In the order of the fields; docs/kmcl.md has them as a table."""


def parse_inferred(words: Iterable[str], base: Inferred = DEFAULTS) -> Inferred:
    """Set what ``words`` (NAME=READING) say in ``base``; raises ValueError with one clear line."""
    chosen: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        switch = next((each for each in SWITCHES if each.name == name), None)
        if switch is None:
            known = ", ".join(each.name for each in SWITCHES)
            raise ValueError(f"{word!r}: there is no switch {name!r}; they are {known}")
        reading = next((each for each in switch.kind if each.value == value), None)
        if reading is None:
            readings = " or ".join(each.value for each in switch.kind)
            raise ValueError(f"{word!r}: {name} is {readings}")
        chosen[name] = reading
    return replace(base, **chosen)
