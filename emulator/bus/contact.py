# SPDX-License-Identifier: MIT
"""The first message of a guest: what it asks for, and what it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from emulator.bus.config import BusConfig
from emulator.bus.outbox import Route
from emulator.wire import messages as m
from emulator.wire.version import Version

MESSAGE_CONNECTION: Final = 1
MULTICLIENT_CONNECTION: Final = 4
"""The port of guests that name SINT and VTL in their contact (from 5.0)."""
VMBUS_SINT: Final = 2
SINT_COUNT: Final = 16
_STATE_OK: Final = 0
_STATE_FAILED: Final = 2


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
    on, where the guest is to post from now on.
    """

    requested: int
    vp: int
    sint: int
    connection_id: int
    verdict: Verdict

    @property
    def version(self) -> Version:
        """The negotiated version; raises ValueError for a contact that was not accepted."""
        return Version(self.requested)

    @property
    def route(self) -> Route:
        """Where the guest wants its messages."""
        return Route(self.vp, self.sint)

    def response(self) -> m.VersionResponse:
        """Return the answer."""
        if self.verdict is Verdict.UNSUPPORTED:
            return m.VersionResponse(0, _STATE_OK, 0)
        state = _STATE_OK if self.verdict is Verdict.ACCEPTED else _STATE_FAILED
        named_port = self.requested >= Version.WIN10_RS3_1
        return m.VersionResponse(1, state, self.connection_id if named_port else self.requested)


def judge(
    config: BusConfig, connection_id: int, message: m.InitiateContact | m.InitiateContact2
) -> tuple[Contact, str]:
    """Return the contact that a message makes, and what is wrong with it or the empty string."""
    requested = message.version_requested
    # Before 3.0 every message goes to VP 0, whatever the field says.
    vp = message.target_message_vp if requested >= Version.WIN8_1 else 0
    sint, vtl = VMBUS_SINT, 0
    if requested >= Version.WIN10_RS3_1 and connection_id == MULTICLIENT_CONNECTION:
        # On the other port the field is the address of an interrupt page, as it was before 5.0.
        sint = message.interrupt_page_or_target_info & 0xFF
        vtl = message.interrupt_page_or_target_info >> 8 & 0xFF

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
    elif vtl != 0:
        verdict, problem = Verdict.FAILED, f"messages for VTL {vtl}; this host has VTL 0 only"
    elif not 0 < sint < SINT_COUNT:
        verdict, problem = Verdict.FAILED, f"messages for SINT {sint}; it has to be 1 to 15"
    elif bool(monitors[0]) != bool(monitors[1]):
        verdict, problem = Verdict.FAILED, "one monitor page; there have to be two or none"
    if not 0 < sint < SINT_COUNT:
        sint = VMBUS_SINT  # the refusal has to arrive somewhere
    return Contact(requested, vp, sint, connection_id, verdict), problem


def is_version(number: int) -> bool:
    """Whether a version with this number was ever published."""
    return number in Version.__members__.values()
