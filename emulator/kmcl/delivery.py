# SPDX-License-Identifier: MIT
"""What the guest sends goes to the VSP: packets, messages of a pipe, once or, when deferred, twice.

A packet can come twice for two reasons: the VSP has deferred it to PASSIVE_LEVEL, or the provider
does not have its external data yet. Nothing is delivered between the two, so the order stays; and a
channel is not suspended between them, so that no packet is promised and never comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.kmcl.config import Drain, ProcessingComplete, ProcessPacket
from emulator.kmcl.errors import FaultKind
from emulator.kmcl.inferred import PendingPacket
from emulator.kmcl.packets import IncomingPacket
from emulator.kmcl.pipe import PipeError, unframe
from emulator.kmcl.traffic import IN_BAND
from emulator.wire.packet import GpaRange, Packet, PacketFlags, PacketType, plain_packet

if TYPE_CHECKING:
    from emulator.kmcl.channel import ServerChannel


class Delivery:
    """Calls the process callbacks of one channel."""

    def __init__(self, channel: ServerChannel) -> None:
        """Deliver nothing before :meth:`enable`."""
        self._channel = channel
        self._process: ProcessPacket | None = None
        self._process_plain: ProcessPacket | None = None
        self._complete: ProcessingComplete | None = None
        self._drain: Drain | None = None
        self._maximum_external: tuple[int, int] | None = None
        self._passive = False
        self.always_passive = False
        """VmbChannelSetIncomingProcessingAtPassive."""
        self.deferred: IncomingPacket | None = None
        """The packet that comes once more."""
        self.packet_class: type[IncomingPacket] = IncomingPacket
        """What the next request becomes: after a doorbell that is timed, a TimedPacket."""

    def enable(
        self,
        process: ProcessPacket | None,
        complete: ProcessingComplete | None,
        drain: Drain | None,
        maximum_external: tuple[int, int] | None,
    ) -> None:
        """Use these callbacks; either ``process`` or ``drain`` is there."""
        self._process, self._complete, self._drain = process, complete, drain
        self._process_plain = None if self._channel.is_pipe else process
        self._maximum_external = maximum_external

    @property
    def at_passive(self) -> bool:
        """Whether a process callback that runs now counts as one at PASSIVE_LEVEL."""
        return self._passive or self.always_passive

    def plain(self, transaction_id: int, payload: bytes, requested: bool) -> bool:
        """As :meth:`packet`, for a packet without ranges: most are."""
        process = self._process_plain
        if process is None:
            return self.packet(plain_packet(IN_BAND, requested, transaction_id, payload))
        channel = self._channel
        incoming = self.packet_class(channel, payload, (), transaction_id, requested)
        channel.traffic.held[incoming] = None
        process(channel, incoming)
        return True

    def ranged(
        self, transaction_id: int, payload: bytes, requested: bool, ranges: tuple[GpaRange, ...]
    ) -> bool:
        """As :meth:`packet`, for a packet with ranges."""
        process = self._process_plain
        if process is None or self._maximum_external is not None:
            flags = PacketFlags.COMPLETION_REQUESTED if requested else PacketFlags.NONE
            return self.packet(
                Packet(PacketType.GPA_DIRECT, flags, transaction_id, payload, ranges)
            )
        channel = self._channel
        incoming = self.packet_class(channel, payload, ranges, transaction_id, requested)
        channel.traffic.held[incoming] = None
        process(channel, incoming)
        return True

    def packet(self, packet: Packet) -> bool:
        """Hand a packet to the VSP; False if it was refused, or drained unseen."""
        traffic = self._channel.traffic
        if self._maximum_external is not None:
            size = sum(gpa_range.length for gpa_range in packet.ranges)
            most, chain = self._maximum_external
            if size > most or len(packet.ranges) > chain:
                traffic.fault(
                    FaultKind.PACKET_REFUSED,
                    f"a packet has {size} bytes of external data in {len(packet.ranges)} ranges; "
                    f"the channel takes {most} in {chain}",
                )
                return False
        if self._channel.is_pipe:
            return self._message(packet)
        if traffic.draining:
            traffic.complete_unseen(packet)
            return False
        self._hand_over(
            packet.payload, packet.ranges, packet.transaction_id, packet.completion_requested
        )
        return True

    def _message(self, packet: Packet) -> bool:
        """Hand over what a packet of a pipe carries, which has no transaction."""
        try:
            message = unframe(packet.payload)
        except PipeError as error:
            self._channel.traffic.fault(FaultKind.PACKET_REFUSED, f"the guest's pipe: {error}")
            return False
        self._hand_over(message, (), packet.transaction_id, False)
        return True

    def _hand_over(
        self,
        payload: bytes,
        ranges: tuple[GpaRange, ...],
        transaction_id: int,
        requested: bool,
    ) -> None:
        assert self._process is not None
        channel = self._channel
        incoming = self.packet_class(channel, payload, ranges, transaction_id, requested)
        channel.traffic.held[incoming] = None
        self._process(channel, incoming)

    def drained(self, packets: int, payload_bytes: int) -> None:
        """Tell what was completed unseen."""
        if self._drain is not None:
            self._drain(self._channel, packets, payload_bytes)

    def batch_done(self, count: int) -> None:
        """EvtChannelProcessingComplete."""
        if self._complete is not None:
            self._complete(self._channel, count)

    @property
    def owes_a_delivery(self) -> bool:
        """Whether the VSP holds a packet that comes once more."""
        return self.deferred is not None and self.deferred in self._channel.traffic.held

    def pend(self, packet: IncomingPacket) -> None:
        """Deliver a packet whose external data are not there once more.

        It is put back into the ring if :class:`PendingPacket` says so, and ends; what comes once
        more is then read anew.
        """
        in_ring = self._channel.inferred.pending is PendingPacket.IN_RING
        if in_ring and self._channel.traffic.leave_unread(packet):
            packet.ended_unread()
        self.defer(packet)

    def defer(self, packet: IncomingPacket) -> None:
        """Deliver a packet once more, and nothing else before it."""
        if self.deferred is not packet:
            self.deferred = packet
            self._channel.traffic.hold_for_retry()
            self._channel.port.poll_again(self._channel)

    def retry(self, over: Callable[[], None]) -> None:
        """Deliver what was deferred, and call ``over`` unless it was deferred again."""
        packet, self.deferred = self.deferred, None
        assert packet is not None
        assert self._process is not None
        self._passive = True
        try:
            # It may have been ended since, out of the callback that deferred it.
            if packet in self._channel.traffic.held:
                self._process(self._channel, packet)
        finally:
            self._passive = False
            if self.deferred is None:
                self._channel.traffic.retried()
                over()
