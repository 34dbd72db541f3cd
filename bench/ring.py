# SPDX-License-Identifier: MIT
"""Packets per second through a ring, in both implementations, against copying the bytes alone.

One round trip of a packet is: write, publish, read, commit, on one ring in this process. The upper
bound is what two copies of as many bytes cost, in and out of the same memory, with no packet around
them. What is left between the two is the price of the ring. Run from the checkout: ``python -m
bench.ring``.
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable, Sequence

from emulator.memory import PageView, _native
from emulator.memory._pure import PurePageView
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import PacketType

VIEW_TYPES: dict[str, Callable[[Sequence[memoryview]], PageView]] = {
    "native": _native.PageView,
    "pure": PurePageView,
}
DATA_PAGES = 16


def best(run: Callable[[], None], packets: int) -> float:
    """Return the seconds a packet took in the best of five runs of `packets` packets each."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) / packets


def scattered_memory() -> list[memoryview]:
    """Make ring memory in which no two pages are neighbours, which is the worst case."""
    memory = memoryview(mmap.mmap(-1, 4096 * 2 * (DATA_PAGES + 1)))
    return [memory[n * 8192 : n * 8192 + 4096] for n in range(DATA_PAGES + 1)]


def ring_seconds(
    make_view: Callable[[Sequence[memoryview]], PageView], payload: bytes, batch: int, packets: int
) -> float:
    """Time round trips, `batch` packets to a publish and a commit."""
    view = make_view(scattered_memory())
    outgoing, incoming = OutgoingRing(view), IncomingRing(view)
    outgoing.init_at_open()
    incoming.attach()

    def run() -> None:
        for _ in range(packets // batch):
            for number in range(batch):
                if not outgoing.write(PacketType.IN_BAND, number, payload):
                    raise RuntimeError("the batch does not fit the ring")
            outgoing.publish()
            for _ in range(batch):
                if incoming.read() is None:
                    raise RuntimeError("a packet is missing")
            incoming.commit()

    return best(run, packets)


def copy_seconds(payload: bytes, packets: int) -> float:
    """Time the two copies alone."""
    memory = memoryview(mmap.mmap(-1, 4096 * DATA_PAGES))
    size = len(payload)

    def run() -> None:
        for _ in range(packets):
            memory[:size] = payload
            bytes(memory[:size])

    return best(run, packets)


def main() -> None:
    """Print one line for each payload size and batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=20_000, help="packets in each run")
    packets = parser.parse_args().packets
    print("payload batch |  native/s    pure/s    copy/s | native:pure copy:native | native us")
    for size in (16, 64, 512, 4096):
        for batch in (1, 8):
            payload = bytes(size)
            native = ring_seconds(VIEW_TYPES["native"], payload, batch, packets)
            pure = ring_seconds(VIEW_TYPES["pure"], payload, batch, packets)
            copy = copy_seconds(payload, packets)
            print(
                f"{size:7} {batch:5} | {1 / native:9.0f} {1 / pure:9.0f} {1 / copy:9.0f} | "
                f"{pure / native:11.2f} {native / copy:11.2f} | {native * 1e6:9.2f}"
            )


if __name__ == "__main__":
    main()
