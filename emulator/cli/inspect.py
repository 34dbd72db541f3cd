# SPDX-License-Identifier: MIT
"""``vmbus inspect``: what a running VMBus host knows of its guest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from emulator.cli.ps import AsJson

if TYPE_CHECKING:
    from emulator.machine.report import Channel, Host, Latency, Ring


def inspect(
    vm: Annotated[str, typer.Argument(help="name, or process id, as `vmbus ps` shows it")],
    channel: Annotated[int | None, typer.Argument(help="id of one channel to show whole")] = None,
    as_json: AsJson = False,
    metrics: Annotated[bool, typer.Option(help="as metrics for Prometheus")] = False,
) -> None:
    """Show connection, channels, rings, packets in flight, counters and latencies of a machine."""
    from emulator.cli.asking import ask, fail
    from emulator.machine.registry import RegistryError, find

    if as_json and metrics:
        fail("--json and --metrics: choose one")
    try:
        report = asyncio.run(ask(find(vm), channel))
    except RegistryError as error:
        fail(str(error))
    if metrics:
        from emulator.machine.metrics import prometheus

        print(prometheus(report), end="")
    elif as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    elif channel is None:
        show_host(report)
    else:
        show_channel(report.channels[0])


def show_host(report: Host) -> None:
    """Print a machine: a few lines, then a line for each channel."""
    from emulator.cli.tables import console, duration, plain, size, table

    out = console()
    state = "running" if report.running else "stopped"
    qemu = f"QEMU connected, {state}" if report.connected else "no QEMU connected"
    up = duration(report.uptime_seconds)
    out.print(f"[bold]{plain(report.vm)}[/bold]: pid {report.pid}, up {up}, {qemu}")
    memory = size(sum(length for _, length in report.memory))
    own = size(report.peak_private_kib * 1024)
    regions = _number(len(report.memory), "region")
    out.print(f"memory {memory} in {regions}; backend's own, at its peak {own}")
    if report.version:
        features = ", ".join(report.features) or "none"
        out.print(
            f"guest connected: VMBus {report.version}, features {features}, messages to VP "
            f"{report.message_vp} SINT {report.message_sint}"
        )
    else:
        out.print("no guest is connected to the bus")
    out.print(f"messages in: {_counts(report.messages_in)}")
    out.print(f"messages out: {_counts(report.messages_out)}")
    out.print(
        f"{report.posts_waiting} host messages not read, {report.messages_held} guest messages "
        f"held; {report.gpadl_pages} pages in GPADLs; {report.guest_errors} guest errors"
    )
    out.print("quotas: " + ", ".join(f"{key} {value}" for key, value in report.quotas.items()))
    for text in report.last_guest_errors:
        out.print(f"  guest: {plain(text)}")
    shown = table(
        ">id",
        "channel",
        "state",
        ">VP",
        ">GPADLs",
        ">in ring",
        ">out ring",
        ">flight",
        ">doorbells",
        ">interrupts",
        ">packets in",
        ">packets out",
    )
    for channel in report.channels:
        flight = channel.flight
        shown.add_row(
            str(channel.id),
            plain(_name(channel)),
            _state(channel),
            "" if channel.open is None else _vp(channel.open.target_vp),
            str(channel.gpadl_count),
            _fill(channel.guest_to_host),
            _fill(channel.host_to_guest),
            str(
                flight.held
                + flight.unread_requests
                + flight.unread_completions
                + flight.queued_packets
                + flight.queued_completions
                + flight.awaiting_completion
            )
            + ("" if flight.unread_is_complete else "+"),
            str(channel.counters.doorbells),
            str(channel.counters.interrupts),
            str(channel.counters.packets_in),
            str(channel.counters.packets_out),
        )
    out.print(shown)


def show_channel(channel: Channel) -> None:
    """Print one channel, whole."""
    from emulator.cli.tables import console, plain, size, table

    out = console()
    out.print(f"[bold]channel {channel.id}[/bold] {plain(_name(channel))}: {_state(channel)}")
    out.print(f"interface {channel.interface} instance {channel.instance}")
    out.print(
        f"KMCL: {channel.connection}, {channel.run}, queue {channel.queue}"
        + (f", reading held: {channel.hold}" if channel.hold else "")
    )
    for text in channel.faults:
        out.print(f"  [bold red]fault[/bold red] {plain(text)}")
    if channel.open is not None:
        opened = channel.open
        out.print(
            f"opened: open id {opened.open_id}, VP {_vp(opened.target_vp)}, SINT "
            f"{opened.target_sint}, event flag {opened.event_flag}, doorbell "
            f"{opened.connection_id:#x}"
            + (f" or trigger {opened.monitor_id}" if opened.monitor_id is not None else "")
            + f"; rings in GPADL {opened.gpadl:#x}, the host's from page "
            f"{opened.downstream_page_offset}"
        )
    rings = table("ring", ">size", ">in", ">out", ">used", ">mask", ">pending", ">features")
    for name, ring in (
        ("guest to host", channel.guest_to_host),
        ("host to guest", channel.host_to_guest),
    ):
        if ring is not None:
            rings.add_row(
                name,
                size(ring.size),
                f"{ring.in_offset:#x}",
                f"{ring.out_offset:#x}",
                _fill(ring),
                str(ring.interrupt_mask),
                str(ring.pending_send_size),
                f"{ring.feature_bits:#x}",
            )
    if rings.row_count:
        out.print(rings)
    flight = channel.flight
    more = "" if flight.unread_is_complete else " or more"
    out.print(
        f"in flight: {flight.unread_requests} requests and {flight.unread_completions} completions "
        f"unread{more}, {flight.held} held (quota {channel.transaction_quota}), "
        f"{flight.queued_packets} packets and {flight.queued_completions} completions queued, "
        f"{flight.awaiting_completion} awaiting completion"
    )
    counters = channel.counters
    out.print(
        f"counted: {counters.doorbells} doorbells, {counters.interrupts} interrupts; in "
        f"{counters.packets_in} packets, {counters.bytes_in} bytes; out {counters.packets_out} "
        f"packets, {counters.bytes_out} bytes"
    )
    gpadls = table(">GPADL", "phase", ">pages", ">ranges", "first ranges (pfn + pages)")
    for gpadl in channel.gpadls or ():
        gpadls.add_row(
            f"{gpadl.id:#x}",
            gpadl.phase,
            str(gpadl.pages),
            str(gpadl.range_count),
            ", ".join(f"{found.first_pfn:#x}+{found.pages}" for found in gpadl.ranges[:4]),
        )
    if gpadls.row_count:
        out.print(gpadls)
    for title, latency in (
        ("doorbell to callback", channel.doorbell_to_callback),
        ("request to completion", channel.request_to_completion),
    ):
        out.print(_histogram(title, latency))


def _histogram(title: str, latency: Latency) -> str:
    from emulator.cli.tables import power_us

    if not latency.count:
        return f"{title}: none timed yet"
    lines = [f"{title}: {latency.count} timed, mean {latency.sum_us / latency.count:.1f} us"]
    most = max(latency.counts)
    used = [power for power, count in enumerate(latency.counts) if count]
    for power in range(used[0], used[-1] + 1):
        count = latency.counts[power]
        last = power == len(latency.counts) - 1
        bound = "more" if last else f"<= {power_us(power)}"
        lines.append(f"  {bound:>10} {count:8} {'#' * round(40 * count / most)}")
    return "\n".join(lines)


def _name(channel: Channel) -> str:
    sub = f"/{channel.subchannel}" if channel.subchannel else ""
    return f"{channel.device}/{channel.role}{sub}"


def _state(channel: Channel) -> str:
    state = channel.state
    if channel.state == "open" and channel.queue != "on":
        state += f", queue {channel.queue}"
    return state + (", FAULT" if channel.faults else "")


def _vp(target_vp: int | None) -> str:
    return "none" if target_vp is None else str(target_vp)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _fill(ring: Ring | None) -> str:
    if ring is None:
        return ""
    return "corrupt" if ring.used is None else f"{100 * ring.used // ring.size} %"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
