# SPDX-License-Identifier: MIT
"""The first message of a guest: what it asks for, and what it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final
from uuid import UUID

from emulator.bus.config import BusConfig
from emulator.bus.outbox import Route
from emulator.wire import messages as m
from emulator.wire.packet import PAGE_SIZE
from emulator.wire.version import GRANTED_FEATURES, FeatureFlags, Version

MESSAGE_CONNECTION: Final = 1
MULTICLIENT_CONNECTION: Final = 4
"""The port of guests that name SINT and VTL in their contact (from 5.0)."""
VMBUS_SINT: Final = 2
SINT_COUNT: Final = 16
NO_CLIENT: Final = UUID(int=0)
NO_BIT_PAGES: Final = (
    "VMBus below 2.4 needs the C extension emulator.memory._native, which this host does not have"
)
STATE_OK: Final = 0
STATE_FAILED: Final = 2


class Verdict(Enum):
    """What the host thinks of a contact."""

    ACCEPTED = "accepted"
    UNSUPPORTED = "unsupported"
    """This host does not speak the version; Linux and Windows go on to ask for the one below."""
    FAILED = "failed"
    """The version is fine, something else in the contact is not."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A contact, and if it was accepted the connection that it made.

    ``requested`` is the version as it stood in the message. ``connection_id`` is the port it came
    on, where the guest is to post from now on. ``features`` are those that were granted.
    ``monitor_pages`` are guest-physical addresses: the host's triggers, then the guest's.
    ``interrupt_page`` is the address of the page of bits that all channels share, below 2.4.
    """

    requested: int
    vp: int
    sint: int
    connection_id: int
    verdict: Verdict
    features: FeatureFlags = FeatureFlags.NONE
    client_id: UUID = NO_CLIENT
    monitor_pages: tuple[int, int] | None = None
    interrupt_page: int | None = None

    @property
    def version(self) -> Version:
        """The negotiated version; raises ValueError for a contact that was not accepted."""
        return Version(self.requested)

    @property
    def route(self) -> Route:
        """Where the guest wants its messages."""
        return Route(self.vp, self.sint)

    @property
    def shares_interrupt(self) -> bool:
        """Whether all channels share one event flag and one event connection (below 2.4)."""
        return self.interrupt_page is not None

    def response(self) -> m.VersionResponse | m.VersionResponse2:
        """Return the answer; from 6.0 it has the features."""
        if self.verdict is Verdict.UNSUPPORTED:
            return m.VersionResponse(0, STATE_OK, 0)
        state = STATE_OK if self.verdict is Verdict.ACCEPTED else STATE_FAILED
        named_port = self.requested >= Version.WIN10_RS3_1
        word = self.connection_id if named_port else self.requested
        if self.requested >= Version.COPPER:
            return m.VersionResponse2(1, state, word, self.features)
        return m.VersionResponse(1, state, word)


IsRam = Callable[[int], bool]
"""Whether the guest-physical page at an address is memory."""

IsVp = Callable[[int], bool]
"""Whether the machine has, or can have, a virtual processor with this index."""


def page_problem(what: str, gpa: int, is_ram: IsRam) -> str:
    """Say what is wrong with the address of a page that guest and host share, or nothing."""
    if not gpa or gpa % PAGE_SIZE or not is_ram(gpa):
        return f"the {what} is at {gpa:#x}, which is not a page of the guest's memory"
    return ""


def judge(
    config: BusConfig,
    connection_id: int,
    message: m.InitiateContact | m.InitiateContact2,
    is_ram: IsRam,
) -> tuple[Contact, str]:
    """Return the contact that a message makes, and what is wrong with it or the empty string."""
    requested = message.version_requested
    # Before 3.0 every message goes to VP 0, whatever the field says.
    vp = message.target_message_vp if requested >= Version.WIN8_1 else 0
    sint, vtl, features = VMBUS_SINT, 0, FeatureFlags.NONE
    if requested >= Version.WIN10_RS3_1 and connection_id == MULTICLIENT_CONNECTION:
        # On the other port the field is the address of an interrupt page, as it was before 5.0.
        sint = message.interrupt_page_or_target_info & 0xFF
        vtl = message.interrupt_page_or_target_info >> 8 & 0xFF
        if requested >= Version.COPPER:
            asked = FeatureFlags(message.interrupt_page_or_target_info >> 32)
            features = asked & GRANTED_FEATURES
    client_id = NO_CLIENT
    if FeatureFlags.CLIENT_ID in features:
        if isinstance(message, m.InitiateContact2):
            client_id = message.client_id
        else:
            features &= ~FeatureFlags.CLIENT_ID

    monitors = (
        message.parent_to_child_monitor_page_gpa,
        message.child_to_parent_monitor_page_gpa,
    )
    verdict, problem = Verdict.ACCEPTED, ""
    if not is_version(requested) or not config.min_version <= requested <= config.max_version:
        verdict = Verdict.UNSUPPORTED
        if requested < config.min_version:
            # One that is too new is no fault: guests begin with the newest and step down.
            problem = (
                f"VMBus version {requested >> 16}.{requested & 0xFFFF} is not spoken here, "
                f"{config.min_version} to {config.max_version} are"
            )
    elif requested < Version.WIN8 and not config.bit_pages:
        verdict = Verdict.UNSUPPORTED
        problem = NO_BIT_PAGES
    elif vtl != 0:
        verdict, problem = Verdict.FAILED, f"messages for VTL {vtl}; this host has VTL 0 only"
    elif not 0 < sint < SINT_COUNT:
        verdict, problem = Verdict.FAILED, f"messages for SINT {sint}; it has to be 1 to 15"
    elif is_half(monitors):
        verdict, problem = Verdict.FAILED, "one monitor page; there have to be two or none"
    interrupt_page: int | None = None
    if verdict is Verdict.ACCEPTED and requested < Version.WIN8:
        interrupt_page = message.interrupt_page_or_target_info
        problem = page_problem("interrupt page", interrupt_page, is_ram)
        if problem:
            verdict = Verdict.FAILED
    if verdict is Verdict.ACCEPTED and all(monitors):
        for page in monitors:
            if problem := page_problem("monitor page", page, is_ram):
                # A guest need not have them, so this is no reason to be without it.
                monitors = (0, 0)
                break
    if verdict is Verdict.FAILED and requested < Version.WIN8:
        # These versions have no way to tell anything else (a response has a state from 2.4 on).
        verdict = Verdict.UNSUPPORTED
    if not 0 < sint < SINT_COUNT:
        sint = VMBUS_SINT  # the refusal has to arrive somewhere
    if verdict is not Verdict.ACCEPTED:
        features, client_id, monitors = FeatureFlags.NONE, NO_CLIENT, (0, 0)
        interrupt_page = None
    contact = Contact(
        requested,
        vp,
        sint,
        connection_id,
        verdict,
        features,
        client_id,
        monitors if all(monitors) else None,
        interrupt_page,
    )
    return contact, problem


def is_half(monitor_pages: tuple[int, int]) -> bool:
    """Whether there is one monitor page: there have to be two or none."""
    return bool(monitor_pages[0]) != bool(monitor_pages[1])


def is_version(number: int) -> bool:
    """Whether a version with this number was ever published."""
    return number in Version.__members__.values()


def chooses_signals(contact: Contact) -> bool:
    """Whether this guest names connection and event flag of a channel that it opens."""
    return FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS in contact.features
