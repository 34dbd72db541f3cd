# SPDX-License-Identifier: MIT
"""What counting and timing cost: requests through a KMCL channel, in batches, timed and not.

A model guest's packets stand in the ring; the host reads them, calls the VSP, which completes each,
and writes the completions. The doorbell is a call: what QEMU, the kernel and the loop do before is
left out, so a request costs less here than in life, and the share of the metering is at its
largest. "untimed" is the same work started without a doorbell, which reads no clock; one doorbell
in eight is timed. Run from the checkout: ``python -m bench.metering``.
"""

from __future__ import annotations

import argparse
import gc
import math
import mmap
import time
import uuid

from emulator.kmcl import IncomingPacket, OfferParams, ServerChannel
from emulator.memory import PageView, page_view
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import GpaRange, PacketType

PAGE = 4096
PAGES = 17
PAYLOAD = bytes(64)


class Port:
    """A provider that has nothing to do."""

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        """Take the offer."""

    def revoke(self, channel: ServerChannel, done: object) -> None:
        """Take the offer back."""

    def signal(self, channel: ServerChannel) -> None:
        """Interrupt nobody."""

    def poll_again(self, channel: ServerChannel) -> None:
        """Never asked for: no batch here is as long."""

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        """There are no GPADLs."""
        raise KeyError(handle)

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Nothing translates code here."""

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        """There is no external data."""
        return []


def complete(_: ServerChannel, packet: IncomingPacket) -> None:
    """Do what the fastest VSP does."""
    packet.complete(b"")


class Bench:
    """A channel on rings of 64 KiB, and the guest's ends of them."""

    def __init__(self) -> None:
        """Open the channel."""
        up, down = (memoryview(mmap.mmap(-1, PAGE * PAGES)) for _ in range(2))
        self.channel = ServerChannel(Port())
        self.channel.init_set_target_interface_id(uuid.uuid4(), uuid.uuid4())
        self.channel.init_set_process_packet_callbacks(complete)
        self.channel.enable()
        self.channel.start()
        self.channel.port_opened(IncomingRing(page_view([up])), OutgoingRing(page_view([down])))
        self.guest_writes = OutgoingRing(page_view([up]))
        self.guest_reads = IncomingRing(page_view([down]))
        self.guest_writes.init_at_open()
        self.guest_reads.init_at_open()

    def run(self, batch: int, packets: int, timed: bool) -> float:
        """Return the nanoseconds that the host had for one packet."""
        host = self.channel.port_doorbell if timed else self.channel.port_interrupt
        writer, reader = self.guest_writes, self.guest_reads
        spent = 0
        for _ in range(packets // batch):
            for number in range(batch):
                if not writer.write(PacketType.IN_BAND, number, PAYLOAD, completion_requested=True):
                    raise RuntimeError("the batch does not fit the ring")
            writer.publish()
            start = time.perf_counter_ns()
            host()
            spent += time.perf_counter_ns() - start
            for _ in range(batch):
                if reader.read() is None:
                    raise RuntimeError("a completion is missing")
            reader.commit()
        return spent / packets


def main() -> None:
    """Print one line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=640, help="packets in each run")
    parser.add_argument("--runs", type=int, default=400, help="runs of each kind, taking turns")
    args = parser.parse_args()
    bench = Bench()
    gc.disable()
    print("batch | untimed ns/packet   timed ns/packet | timed:untimed")
    for batch in (1, 8, 32):
        # The best of many short runs: what others do on the machine only ever adds.
        best = {False: math.inf, True: math.inf}
        for _ in range(args.runs):
            for timed in best:
                best[timed] = min(best[timed], bench.run(batch, args.packets, timed))
        ratio = best[True] / best[False]
        print(f"{batch:5} | {best[False]:17.0f} {best[True]:17.0f} | {ratio:13.3f}")


if __name__ == "__main__":
    main()
