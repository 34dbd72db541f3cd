# SPDX-License-Identifier: MIT
"""A guest in a process of its own: sends numbered requests, checks the completions.

Arguments: descriptors of the shared memory (four pages: both rings, guest-to-host first), of the
pipe that is the doorbell, of the pipe that is the interrupt; the number of requests. Both pipes
have room for far more wake-ups than there can be.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import zlib

from emulator.model.ring import GuestReader, GuestRing, GuestWriter, build_packet


def main() -> None:
    memory_fd, doorbell, interrupt, total = map(int, sys.argv[1:])
    memory = memoryview(mmap.mmap(memory_fd, 4 * 4096))
    pages = [memory[n * 4096 : n * 4096 + 4096] for n in range(4)]
    writer, reader = GuestWriter(GuestRing(pages[:2])), GuestReader(GuestRing(pages[2:]))
    rng = random.Random(total)
    payloads = [rng.randbytes(8 * rng.randrange(200)) for _ in range(total)]
    sent = completed = 0

    def send() -> bool:
        """Send what fits; False when the ring is full and room is asked for."""
        nonlocal sent
        while sent < total:
            packet = build_packet(6, sent, payloads[sent], flags=1)
            signal = writer.put(packet)
            if signal is None:
                if not writer.ring.run(writer.wait_steps(len(packet) + 8)):
                    return False
            else:
                sent += 1
                if signal:
                    os.write(doorbell, b"!")
        return True

    while completed < total:
        reader.ring.control[2] = 1
        while (taken := reader.take()) is not None:
            packet, signal = taken
            if signal:
                os.write(doorbell, b"!")
            answer = zlib.crc32(payloads[completed])
            assert (packet.type, packet.transaction_id) == (11, completed)
            assert packet.payload == answer.to_bytes(8, "little") * 100
            completed += 1
        send()
        if not reader.ring.run(reader.idle_steps()) and completed < total:
            assert os.read(interrupt, 4096), "the host has gone"


if __name__ == "__main__":
    main()
