# SPDX-License-Identifier: MIT
"""Save and restore a channel with many packets in use: how long, and how many bytes.

    python -m bench.saverestore [--packets N] [--rounds N]

Half of the packets are in the ring and wait for the guest, half are queued behind it, each with 8
bytes of payload and a context of the VSP's own. The control is msgpack encoding and decoding a list
of as many small records in the same run: what any typed state of that size costs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import msgspec

from emulator.conformance.rig import Rig
from emulator.wire.ntstatus import NtStatus


def busy(packets: int) -> Rig:
    """Make a paused channel with that many packets in use."""
    half = packets // 2
    # A packet takes 32 bytes: descriptor, 8 bytes of payload, trailer.
    rig = Rig(pages=half * 32 // 4096 + 1).running()
    sent = 0
    while sent < packets:
        rig.send(f"{sent:08}", wait=True)
        sent += 1
    assert rig.pause()
    return rig


def seconds(call: Callable[[], object]) -> float:
    """Return how long ``call`` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def save(rig: Rig) -> list[bytes]:
    """Save in buffers of 64 KiB, as a device does."""
    return rig.save(lambda: 65_536)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.saverestore")
    parser.add_argument("--packets", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    saves, restores, controls, sizes = [], [], [], []
    stats = busy(2).channel.stats()
    record = (1, True, 12_345, b"8 bytes.", b"00000001")
    for _ in range(options.rounds):
        rig = busy(options.packets)
        stats = rig.channel.stats()
        pieces: list[bytes] = []
        saves.append(seconds(lambda rig=rig, pieces=pieces: pieces.extend(save(rig))))  # type: ignore[misc]
        restores.append(seconds(lambda rig=rig, pieces=pieces: rig.restored(pieces)))  # type: ignore[misc]
        again = rig.channel.stats()
        assert (again.awaiting_completion, again.queued_wait) == (
            stats.awaiting_completion,
            stats.queued_wait,
        )
        blobs = sum(len(restored.save_buffer) for restored in rig.vsp.restored)
        sizes.append((sum(map(len, pieces)) - blobs) / options.packets)
        status: list[NtStatus] = []
        rig.channel.disable(lambda status=status: status.append(NtStatus.SUCCESS))  # type: ignore[misc]
        assert status
        records = [record] * options.packets
        controls.append(
            seconds(lambda records=records: msgspec.msgpack.decode(msgspec.msgpack.encode(records)))  # type: ignore[misc]
        )
    print(f"{platform.machine()}, Python {platform.python_version()}, {options.rounds} rounds")
    print(
        f"{options.packets} packets in use: {stats.awaiting_completion} in the ring, "
        f"{stats.queued_wait} queued"
    )
    control = statistics.median(controls)
    for what, times in (("save", saves), ("restore", restores)):
        median = statistics.median(times)
        print(f"{what:8} {median * 1000:7.1f} ms (goal 500), {median / control:6.1f} x msgpack")
    print(f"state    {statistics.median(sizes):7.1f} bytes a packet beside the VSP's (goal 150)")


if __name__ == "__main__":
    main()
