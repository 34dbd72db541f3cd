# SPDX-License-Identifier: MIT
"""What ``vmbus inspect`` shows of a running backend, as data: the form of ``--json``.

The backend fills these structures (``emulator.machine.inspect``), its control socket carries them
as JSON, and the command line reads them back. A field that is added has a default; none changes its
meaning.
"""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True):
    """What all of them have in common."""


class Ring(Report, frozen=True):
    """The control page of one ring, read once and not believed.

    ``size`` is the bytes of data it has; the offsets are bytes. ``used`` is what lies between
    them, or None if the guest has put something there that is no offset. ``pending_send_size`` is
    the free space, in bytes, for which the writer waits.
    """

    size: int
    in_offset: int
    out_offset: int
    used: int | None
    interrupt_mask: int
    pending_send_size: int
    feature_bits: int


class Range(Report, frozen=True):
    """One range of a GPADL: ``length`` bytes from ``offset`` in the first of its ``pages``."""

    first_pfn: int
    pages: int
    offset: int
    length: int


class Gpadl(Report, frozen=True):
    """One GPADL. ``range_count`` ranges are announced; at most the first 16 are in ``ranges``."""

    id: int
    phase: str
    pages: int
    received_bytes: int
    announced_bytes: int
    range_count: int
    ranges: list[Range]


class Open(Report, frozen=True):
    """How the guest has opened the channel; ``target_vp`` is None without an interrupt.

    ``monitor_id`` is the trigger that it may set instead of ringing the doorbell, if it has one.
    """

    open_id: int
    gpadl: int
    target_vp: int | None
    target_sint: int
    event_flag: int
    connection_id: int
    downstream_page_offset: int
    monitor_id: int | None = None


class Flight(Report, frozen=True):
    """Packets that are under way. ``unread_*`` stand in the guest's ring and were not read yet.

    ``unread_is_complete`` is False if there are more than were looked at, or the ring is corrupt.
    """

    held: int
    unread_requests: int
    unread_completions: int
    unread_is_complete: bool
    queued_packets: int
    queued_completions: int
    awaiting_completion: int


class Latency(Report, frozen=True):
    """A histogram: ``counts[n]`` durations of at most 2**n microseconds, the last of any length.

    Each duration is in one bucket only; ``sum_us`` is all of them together.
    """

    counts: list[int]
    sum_us: float

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts)


class Counters(Report, frozen=True):
    """What was counted since the backend started. Bytes are those on the ring, headers included."""

    doorbells: int
    interrupts: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class Channel(Report, frozen=True):
    """One channel. ``state`` is the bus's, ``connection``, ``run`` and ``queue`` are KMCL's.

    ``gpadls`` is None unless the channel was asked for by its id. ``hold`` says why nothing is read
    although the queue is on. The latencies are of the first request after every eighth
    doorbell.
    """

    id: int
    device: str
    role: str
    interface: str
    instance: str
    subchannel: int
    state: str
    connection: str
    run: str
    queue: str
    hold: str
    faults: list[str]
    open: Open | None
    gpadl_count: int
    gpadl_pages: int
    gpadls: list[Gpadl] | None
    guest_to_host: Ring | None
    host_to_guest: Ring | None
    flight: Flight
    transaction_quota: int
    counters: Counters
    doorbell_to_callback: Latency
    request_to_completion: Latency


class Host(Report, frozen=True):
    """One VM's VMBus host.

    ``version`` is empty without a guest. ``message_vp`` and ``message_sint`` are where the guest
    wants its messages. ``memory`` is the address and size in bytes of each region of RAM.
    ``posts_waiting`` are host messages that are not in the guest's SIM page yet, ``messages_held``
    guest messages that wait for that.
    """

    vm: str
    pid: int
    uptime_seconds: float
    connected: bool
    running: bool
    version: str
    features: list[str]
    message_vp: int | None
    message_sint: int | None
    memory: list[tuple[int, int]]
    channels: list[Channel]
    gpadl_pages: int
    messages_in: dict[str, int]
    messages_out: dict[str, int]
    posts_waiting: int
    messages_held: int
    guest_errors: int
    last_guest_errors: list[str]
    peak_private_kib: int
    quotas: dict[str, int] = {}
