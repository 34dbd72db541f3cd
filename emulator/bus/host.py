# SPDX-License-Identifier: MIT
"""The VMBus host state machine: guest messages in, effects out. No I/O, no clock, no threads.

Theory. There is at most one connection. A contact makes it; an unload, a reset or another contact
ends it. It has ended only when the owners have let go of every ring and every GPADL: until then the
bus is *disconnecting*, and the answer that the guest waits for (UnloadComplete, the next
VersionResponse) is owed, for with that answer the guest takes its pages back. Offers outlive
connections. A channel keeps its id for as long as the host lives, over reboot and restore.

Blame. What a guest does wrong is a ``GuestError`` effect, never an exception: it harms that message
only. What an owner does wrong raises ``ValueError``.
"""

from __future__ import annotations

import dataclasses
from typing import assert_never

from emulator.bus import snapshot
from emulator.bus.channel import ChannelState, Ending
from emulator.bus.channels import Channels
from emulator.bus.config import BusConfig
from emulator.bus.contact import (
    MESSAGE_CONNECTION,
    MULTICLIENT_CONNECTION,
    STATE_FAILED,
    STATE_OK,
    VMBUS_SINT,
    Contact,
    IsRam,
    IsVp,
    Verdict,
    is_half,
    judge,
    page_problem,
)
from emulator.bus.effects import BusConnected, BusDisconnected, Effect, Offer, OfferKey
from emulator.bus.gpadl import GpadlTable
from emulator.bus.outbox import Outbox, Route
from emulator.bus.pages import SignalPages
from emulator.bus.restoring import RestoredChannel, Restoring
from emulator.bus.sharing import Sharing
from emulator.bus.state import BusState
from emulator.wire import messages as m
from emulator.wire.message import MessageStatus
from emulator.wire.version import FeatureFlags, Version


class BusHost:
    """The bus of one guest."""

    def __init__(
        self,
        config: BusConfig,
        is_ram: IsRam = lambda gpa: True,
        is_vp: IsVp = lambda vp: True,
    ) -> None:
        """Make a bus without offers and without a guest.

        ``is_ram`` tells whether a page that the guest names for signals is memory, ``is_vp``
        whether there is the virtual processor that it wants a channel's interrupts on.
        """
        self.config = config
        self.is_ram = is_ram
        self.contact: Contact | None = None
        self.ending: Ending | None = None
        self.next_contact: Contact | None = None
        self.outbox = Outbox()
        self.sharing = Sharing(
            GpadlTable(config.max_gpadls_per_channel, config.max_pages), self.outbox
        )
        self.table = Channels(self.sharing, self.outbox, is_vp)
        self._restoring: Restoring | None = None

    @property
    def version(self) -> Version | None:
        """The negotiated version, while a guest is connected."""
        return self.contact.version if self.contact is not None and not self.ending else None

    @property
    def features(self) -> FeatureFlags:
        """What was granted to the guest; nothing while none is connected."""
        connected = self.contact is not None and self.ending is None
        return self.contact.features if connected and self.contact else FeatureFlags.NONE

    @property
    def pages(self) -> SignalPages:
        """The pages that the guest signals with; none while it is not connected."""
        if self.contact is None or self.ending is not None:
            return SignalPages()
        monitors = self.contact.monitor_pages
        return SignalPages(self.contact.interrupt_page, monitors[1] if monitors else None)

    def take_effects(self) -> list[Effect]:
        """Return what is to be done, in order, and forget it."""
        return self.outbox.take()

    def offers(self) -> list[Offer]:
        """Return what is offered, in the order of channel ids."""
        return [channel.offer for channel in self.table]

    def channels(self) -> list[str]:
        """Describe the channels, for people."""
        return [str(channel) for channel in self.table]

    # The owners' calls.

    def offer(self, offer: Offer, *, anew: bool = False) -> None:
        """Offer a channel; during a restore, claim it.

        ``anew`` is for an owner that does not go on with what the guest knows by this key: if the
        channel is restored, it is rescinded, and offered when the guest has let go of it.

        Raises ValueError if it is offered already, its data are too long or the ids are used up.
        """
        if len(offer.user_defined) > m.USER_DEFINED_SIZE:
            raise ValueError(
                f"{len(offer.user_defined)} bytes of offer data; at most {m.USER_DEFINED_SIZE}"
            )
        if self._restoring is None or not self._restoring.claim(offer, anew):
            self.table.offer(offer)

    def rescind(self, key: OfferKey) -> None:
        """Take an offer back; raises ValueError if there is none, or if it is a primary channel and
        has sub-channels still: those go first, as on Hyper-V.

        The owner has let go of the rings and of all GPADLs, and owes the bus no answer any more.
        """
        if self._restoring is not None:
            self._restoring.check_claimed(key)
        self.table.rescind(key)
        self._maybe_disconnected()

    def subchannels(self, key: OfferKey) -> list[OfferKey]:
        """Return the sub-channels of a primary channel that are offered, the last first."""
        return [
            sub
            for sub in self.table.families.of(key)
            if self.table.table[sub].state is not ChannelState.REVOKED
        ]

    def open_result(self, key: OfferKey, ok: bool) -> None:
        """Answer ChannelOpening; raises ValueError if nobody asked.

        An answer that comes after the owner rescinded the channel is ignored.
        """
        self.table.open_result(key, ok)
        self._maybe_disconnected()

    def close_done(self, key: OfferKey) -> None:
        """Answer ChannelClosing; raises ValueError if nobody asked.

        An answer that comes after the owner rescinded the channel is ignored.
        """
        self.table.close_done(key)
        self._maybe_disconnected()

    def gpadl_released(self, key: OfferKey, gpadl_id: int) -> None:
        """Answer GpadlTearingDown; one that was not asked for is left alone."""
        if key in self.table.table:
            self.sharing.released(self.table.ids[key], gpadl_id)
        self._maybe_disconnected()

    def reset(self) -> None:
        """Forget the guest: the machine was reset. Offers stay. Idempotent."""
        self.next_contact = None
        self._disconnect(Ending.NOTHING, "the machine was reset")

    # Save and restore.

    def save(self) -> BusState:
        """Return the state; raises ValueError while effects wait to be taken or a restore lasts."""
        if len(self.outbox):
            raise ValueError("take the effects before saving")
        if self._restoring is not None:
            raise ValueError("finish the restore before saving")
        return snapshot.save(self)

    def restore(self, state: BusState) -> list[RestoredChannel]:
        """Fill a fresh bus; then offer what there is, and end with :meth:`finish_restore`.

        Raises :class:`RestoreMismatch`, with all that is wrong with the state; the bus is of no
        further use then. Raises ValueError if the bus is not fresh.
        """
        if self.table.table or self.contact is not None or self._restoring is not None:
            raise ValueError("only a fresh bus can be restored")
        snapshot.restore(self, state)
        self._restoring = Restoring(self.table)
        return self._restoring.restored

    def has_changed(self, offer: Offer) -> bool:
        """Whether the guest of a restore knows the channel with other contents."""
        return self._restoring is not None and self._restoring.has_changed(offer)

    def finish_restore(self) -> None:
        """End a restore: rescind what nobody claimed, offer what is new, ask again what was asked.

        Raises :class:`RestoreMismatch` if offers have changed, with all that have.
        """
        if self._restoring is None:
            raise ValueError("there is no restore to finish")
        self._restoring.check()
        restoring, self._restoring = self._restoring, None
        restoring.drop_unclaimed()
        restoring.offer_anew()
        snapshot.replay(self)
        restoring.tell_new()
        self._maybe_disconnected()

    # The guest's messages.

    def guest_message(self, connection_id: int, payload: bytes) -> None:
        """Take what the guest gave to HvPostMessage on ``connection_id``. Never raises."""
        if connection_id not in (MESSAGE_CONNECTION, MULTICLIENT_CONNECTION):
            self.outbox.blame(f"a message on connection {connection_id}")
            return
        try:
            message = m.parse_guest(payload, self.version, self.features)
        except m.MalformedMessage as error:
            self.outbox.blame(str(error))
            return
        version = self.version
        if isinstance(message, m.InitiateContact | m.InitiateContact2):
            self._initiate_contact(connection_id, message)
        elif isinstance(message, m.CloseReservedChannel) and version is None:
            self.table.close_reserved(message)
        elif version is None:
            self.outbox.blame(f"{message.TYPE.name} without a connection")
            self._let_go(message)
        elif version < message.SINCE:
            self.outbox.blame(f"{message.TYPE.name} is not part of version {version}")
        elif not message.known_at(version, self.features):
            self.outbox.blame(f"{message.TYPE.name} is of a feature that was not negotiated")
        elif not self._may_answer(message):
            self.outbox.blame(
                f"{message.TYPE.name} while {self.config.max_held_messages} messages wait for a "
                "guest that has paused the connection"
            )
        else:
            self._connected_message(message, version)

    def _may_answer(self, message: m.GuestMessage) -> bool:
        """Whether there is room for answers; a guest that leaves or resumes gets room by that."""
        held = self.outbox.held
        return (
            held is None
            or len(held) < self.config.max_held_messages
            or isinstance(message, m.Resume | m.Unload)
        )

    def _let_go(self, message: m.GuestMessage) -> None:
        """Let a guest leave that had its connection with a host before this one.

        Linux waits for these two answers without an end when its bus driver is unloaded
        (vmbus_teardown_gpadl(), vmbus_initiate_unload()). Both are true: nothing here uses its
        pages. Where it listens is not known any more; VP 0 is what Linux and old versions use.
        """
        if self.ending is not None:
            return
        self.outbox.route = Route(0, VMBUS_SINT)
        match message:
            case m.GpadlTeardown():
                self.outbox.send(m.GpadlTorndown(message.gpadl_id))
            case m.Unload():
                self.outbox.send(m.UnloadComplete())
            case _:
                pass
        self.outbox.route = None

    def _connected_message(self, message: m.GuestMessage, version: Version) -> None:
        match message:
            case m.RequestOffers():
                self.table.request_offers()
            case m.OpenChannel() | m.OpenChannel2():
                self.table.open(message)
            case m.CloseChannel():
                self.table.close(message)
            case m.GpadlHeader():
                self.sharing.header(self.table.find(message.channel_id), message)
            case m.GpadlBody():
                channel = self.table.find(self.sharing.receiver(message.gpadl_id))
                self.sharing.body(channel, message)
            case m.GpadlTeardown():
                self.sharing.teardown(self.table.find(message.channel_id), message)
            case m.RelIdReleased():
                self.table.release(message)
            case m.Unload():
                self._disconnect(Ending.UNLOAD_COMPLETE, "the guest unloaded its bus driver")
            case m.ModifyChannel():
                self.table.modify(message, version)
            case m.TlConnectRequest() | m.TlConnectRequest2():
                self._refuse_socket(message, version)
            case m.ModifyConnection():
                self._modify_connection(message)
            case m.Pause():
                self._pause()
            case m.Resume():
                if self.outbox.held is None:
                    self.outbox.blame("the connection is to be resumed and is not paused")
                self.outbox.resume()
            case m.OpenReservedChannel():
                self.table.open_reserved(message)
            case m.CloseReservedChannel():
                self.table.close_reserved(message)
            case m.InitiateContact() | m.InitiateContact2():
                raise AssertionError("taken before there is a version")
            case _:
                assert_never(message)

    def _modify_connection(self, message: m.ModifyConnection) -> None:
        assert self.contact is not None
        pages = (message.parent_to_child_monitor_page_gpa, message.child_to_parent_monitor_page_gpa)
        state = STATE_OK
        if is_half(pages):
            state = STATE_FAILED
            self.outbox.blame("one monitor page; there have to be two or none")
        elif any(problems := [page_problem("monitor page", p, self.is_ram) for p in pages if p]):
            state = STATE_FAILED
            self.outbox.blame("; ".join(problem for problem in problems if problem))
        else:
            kept = pages if all(pages) else None
            self.contact = dataclasses.replace(self.contact, monitor_pages=kept)
        self.outbox.send(m.ModifyConnectionResponse(state))

    def _pause(self) -> None:
        if self.outbox.held is not None:
            self.outbox.blame("the connection is paused already")
            return
        self.outbox.send(m.PauseResponse())
        self.outbox.pause()

    def _refuse_socket(
        self, message: m.TlConnectRequest | m.TlConnectRequest2, version: Version
    ) -> None:
        self.outbox.blame(f"nothing listens for Hyper-V socket service {message.service_id}")
        if version >= m.TlConnectResult.SINCE:
            self.outbox.send(
                m.TlConnectResult(
                    message.endpoint_id, message.service_id, MessageStatus.CONNECTION_REFUSED
                )
            )

    # The beginning and the end of a connection.

    def _initiate_contact(
        self, connection_id: int, message: m.InitiateContact | m.InitiateContact2
    ) -> None:
        contact, problem = judge(self.config, connection_id, message, self.is_ram)
        if problem:
            self.outbox.blame(problem)
        # Firmware and crash kernels contact the bus without an unload before; whatever the verdict,
        # the guest that had the old connection is gone.
        self.next_contact = contact
        self._disconnect(Ending.VERSION_RESPONSE, "the guest contacted the bus anew")

    def _disconnect(self, ending: Ending, reason: str) -> None:
        if self.contact is not None and self.ending is None:
            self.outbox.emit(BusDisconnected(reason))
        self.ending = ending
        self.outbox.drop_guest()
        # Another kernel, after a contact or a reset, waits for none of the old one's answers.
        self.table.disconnect(answer=ending is Ending.UNLOAD_COMPLETE)
        self._maybe_disconnected()

    def _maybe_disconnected(self) -> None:
        """Pay what is owed, once the owners have let go of everything."""
        # No GPADL also means no rings: those are in GPADLs, which stay until the rings are closed.
        if self.ending is None or len(self.sharing.table):
            return
        contact, self.contact = self.contact, None
        ending, self.ending = self.ending, None
        following, self.next_contact = self.next_contact, None
        match ending:
            case Ending.NOTHING:
                pass
            case Ending.UNLOAD_COMPLETE:
                assert contact is not None
                if contact.version >= m.UnloadComplete.SINCE:
                    self.outbox.route = contact.route
                    self.outbox.send(m.UnloadComplete())
                    self.outbox.route = None
            case Ending.VERSION_RESPONSE:
                assert following is not None
                self._answer(following)
            case _:
                assert_never(ending)

    def _answer(self, contact: Contact) -> None:
        self.outbox.route = contact.route
        self.outbox.send(contact.response())
        if contact.verdict is Verdict.ACCEPTED:
            self.contact = contact
            self.table.follow(contact)
            self.outbox.emit(BusConnected(contact.version))
        else:
            self.outbox.route = None
