# SPDX-License-Identifier: MIT
"""Both rings between two processes that really run at once and sleep on their signals."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
import zlib
from collections import deque
from pathlib import Path

from emulator.model.ring import GuestRing
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import PacketType
from tests.unit.ring.support import ViewType

REQUESTS = 2000


class Host:
    """Completes every request with the CRC of its payload, in a large completion: both rings fill
    up.
    """

    def __init__(self, incoming: IncomingRing, outgoing: OutgoingRing, interrupt: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.interrupt = interrupt
        self.queue: deque[tuple[int, bytes]] = deque()
        self.completed = 0

    def signal(self) -> None:
        os.write(self.interrupt, b"!")

    def receive(self) -> None:
        # A bound on the queue: without it the guest-to-host ring would hardly ever be full.
        while len(self.queue) < 4 and (packet := self.incoming.read()) is not None:
            assert packet.completion_requested
            answer = zlib.crc32(packet.payload).to_bytes(8, "little") * 100
            self.queue.append((packet.transaction_id, answer))
        if self.incoming.commit():
            self.signal()

    def complete(self) -> bool:
        """Send what fits; False when the ring is full and room is asked for."""
        while self.queue:
            number, answer = self.queue[0]
            if self.outgoing.write(PacketType.COMPLETION, number, answer):
                self.queue.popleft()
                self.completed += 1
                continue
            if self.outgoing.publish():
                self.signal()
            if not self.outgoing.request_space(OutgoingRing.packet_size(len(answer))):
                return False
        if self.outgoing.publish():
            self.signal()
        return True

    def serve(self, doorbell: int) -> None:
        while self.completed < REQUESTS:
            self.incoming.mask()
            self.receive()
            sent_all = self.complete()
            more = self.incoming.unmask()
            if (sent_all and more) or self.completed == REQUESTS:
                continue
            # The limit turns a lost wake-up into a failure; nothing here takes that long.
            assert select.select([doorbell], [], [], 60)[0], "no doorbell: a wake-up was lost"
            assert os.read(doorbell, 4096), "the guest has gone"


def test_two_processes(view_type: ViewType, checkout: Path) -> None:
    memory = os.memfd_create("rings")
    os.ftruncate(memory, 4 * 4096)
    pages = memoryview(mmap.mmap(memory, 4 * 4096))
    for first in (0, 2):
        GuestRing([pages[n * 4096 : n * 4096 + 4096] for n in (first, first + 1)]).initialise()
    incoming, outgoing = (
        IncomingRing(view_type([pages[:8192]])),
        OutgoingRing(view_type([pages[8192:]])),
    )
    incoming.init_at_open()
    outgoing.init_at_open()
    doorbell, guest_doorbell = os.pipe()
    guest_interrupt, interrupt = os.pipe()
    fds = [memory, guest_doorbell, guest_interrupt]
    host = Host(incoming, outgoing, interrupt)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.unit.ring.guest_process", *map(str, fds), str(REQUESTS)],
        pass_fds=fds,
        cwd=checkout,
    ) as guest:
        for fd in fds:
            os.close(fd)
        try:
            host.serve(doorbell)
        finally:
            os.close(interrupt)
            if sys.exc_info()[0] is not None:
                guest.kill()
    os.close(doorbell)
    assert guest.returncode == 0
    assert incoming.unread_bytes == 0
