# SPDX-License-Identifier: MIT
"""What becomes of GPADLs: the guest's three messages, and the ends of channels.

The rule: a guest is told GpadlTorndown, and so may reuse the pages, only after the owner of the
channel has said that it uses them no more. Where the owner has let go of everything already (a
revoked channel), the answer comes at once.
"""

from __future__ import annotations

from emulator.bus.channel import Channel
from emulator.bus.effects import GpadlCreated, GpadlTearingDown
from emulator.bus.gpadl import Gpadl, GpadlError, GpadlPhase, GpadlTable
from emulator.bus.outbox import Outbox
from emulator.wire import messages as m


class Sharing:
    """The GPADLs of one bus."""

    def __init__(self, table: GpadlTable, outbox: Outbox) -> None:
        """Keep the GPADLs in ``table``."""
        self.table = table
        self._outbox = outbox

    # The guest's messages. Channels are those that the guest knows.

    def header(self, channel: Channel | None, message: m.GpadlHeader) -> None:
        """Begin a GPADL."""
        gpadl = Gpadl(message.channel_id, message.gpadl_id, message.length, message.count)
        try:
            if channel is None:
                raise GpadlError("the channel was not offered")
            self.table.add(gpadl)
            complete = self.table.receive(gpadl, message.tail)
        except GpadlError as error:
            self._refuse(gpadl, error)
            return
        if complete:
            self._accept(channel, gpadl)

    def body(self, channel: Channel | None, message: m.GpadlBody) -> None:
        """Go on with a GPADL; ``channel`` is that of :meth:`receiver`."""
        gpadl = self.table.being_received(message.gpadl_id)
        if gpadl is None or channel is None:
            # Surplus of one that is complete, or of one that was refused with its header.
            self._outbox.blame(
                f"a body for GPADL {message.gpadl_id:#x}, which is not being received"
            )
            return
        try:
            complete = self.table.receive(gpadl, message.tail)
        except GpadlError as error:
            self._refuse(gpadl, error)
            return
        if complete:
            self._accept(channel, gpadl)

    def receiver(self, gpadl_id: int) -> int:
        """Return the channel id that a body of this GPADL is for, or 0."""
        gpadl = self.table.being_received(gpadl_id)
        return gpadl.channel_id if gpadl is not None else 0

    def teardown(self, channel: Channel | None, message: m.GpadlTeardown) -> None:
        """Give a GPADL back, now or when its channel has closed."""
        gpadl = self.table.find(message.channel_id, message.gpadl_id)
        if gpadl is None or channel is None:
            # There is no way to refuse: GpadlTorndown carries no status.
            self._outbox.blame(
                f"teardown of GPADL {message.gpadl_id:#x}, "
                f"which channel {message.channel_id} does not have"
            )
        elif gpadl.phase is not GpadlPhase.ACCEPTED:
            self._outbox.blame(f"teardown of GPADL {message.gpadl_id:#x}: {gpadl.phase.value}")
        elif channel.uses(gpadl.gpadl_id):
            # Linux closes and tears down in one breath, while the owner is still closing: an answer
            # now would hand it pages that the owner still writes to. Refusing is no choice either,
            # for the message has no refusal. A guest that tears down the ring of a channel it has
            # not closed gets its answer after it does.
            gpadl.phase = GpadlPhase.WAITING_FOR_CLOSE
        else:
            self._tear_down(channel, gpadl)

    # The owner's answer.

    def released(self, channel_id: int, gpadl_id: int) -> None:
        """The owner has let go of a GPADL; one that it was not asked for is left alone."""
        gpadl = self.table.find(channel_id, gpadl_id)
        if gpadl is None:
            return
        if gpadl.phase is GpadlPhase.TEARING_DOWN:
            self.table.remove(gpadl)
            self._outbox.send(m.GpadlTorndown(gpadl_id))
        elif gpadl.phase is GpadlPhase.DROPPED:
            self.table.remove(gpadl)

    # The ends of channels.

    def closed(self, channel: Channel) -> None:
        """The owner has let go of the rings of ``channel``: tear down what waited for that."""
        for gpadl in self.table.of(channel.channel_id):
            if gpadl.phase is GpadlPhase.WAITING_FOR_CLOSE:
                self._tear_down(channel, gpadl)

    def let_go(self, channel: Channel) -> None:
        """The guest has let go of ``channel``, whose rings nobody has: ask the owner to let go.

        Nobody waits for the answers any more.
        """
        for gpadl in self.table.of(channel.channel_id):
            match gpadl.phase:
                case GpadlPhase.RECEIVING:
                    self.table.remove(gpadl)
                case GpadlPhase.ACCEPTED | GpadlPhase.WAITING_FOR_CLOSE:
                    gpadl.phase = GpadlPhase.DROPPED
                    self._outbox.emit(GpadlTearingDown(channel.offer.key, gpadl.gpadl_id))
                case GpadlPhase.TEARING_DOWN:
                    gpadl.phase = GpadlPhase.DROPPED
                case GpadlPhase.DROPPED:
                    pass

    def revoked(self, channel: Channel) -> None:
        """The owner has let go of everything: give the answers that the guest waits for.

        The others stay, because the guest will tear them down.
        """
        for gpadl in self.table.of(channel.channel_id):
            if gpadl.phase in (GpadlPhase.WAITING_FOR_CLOSE, GpadlPhase.TEARING_DOWN):
                self.table.remove(gpadl)
                self._outbox.send(m.GpadlTorndown(gpadl.gpadl_id))

    def forget(self, channel: Channel) -> None:
        """Neither side holds ``channel`` any more."""
        for gpadl in self.table.of(channel.channel_id):
            self.table.remove(gpadl)

    # Steps.

    def _accept(self, channel: Channel, gpadl: Gpadl) -> None:
        # A GPADL for a channel just revoked succeeds: the guest sent it before it saw the rescind.
        # Hyper-V does so, and Linux does not cope with a failure.
        if not channel.state.is_revoked:
            self._outbox.emit(GpadlCreated(channel.offer.key, gpadl.gpadl_id, gpadl.ranges))
        self._outbox.send(
            m.GpadlCreated(channel.channel_id, gpadl.gpadl_id, m.MessageStatus.SUCCESS)
        )

    def _refuse(self, gpadl: Gpadl, error: GpadlError) -> None:
        self._outbox.blame(f"channel {gpadl.channel_id}, GPADL {gpadl.gpadl_id:#x}: {error}")
        self._outbox.send(
            m.GpadlCreated(gpadl.channel_id, gpadl.gpadl_id, m.MessageStatus.UNSUCCESSFUL)
        )

    def _tear_down(self, channel: Channel, gpadl: Gpadl) -> None:
        if channel.state.is_revoked:
            self.table.remove(gpadl)
            self._outbox.send(m.GpadlTorndown(gpadl.gpadl_id))
        else:
            gpadl.phase = GpadlPhase.TEARING_DOWN
            self._outbox.emit(GpadlTearingDown(channel.offer.key, gpadl.gpadl_id))
