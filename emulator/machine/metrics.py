# SPDX-License-Identifier: MIT
"""A report as Prometheus metrics, in the text format (prometheus.io: exposition formats).

Names follow Prometheus' rules: base units, counters end in ``_total``. What a guest chooses is
never a label, or it could make time series without end; channels and message types are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from emulator.machine.report import Channel, Host, Latency, Ring

_LABELS = ("vm", "device", "channel")


def prometheus(report: Host) -> str:
    """Return the metrics of a report."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(report))
    return generate_latest(registry).decode()


class _Collector(Collector):
    """Gives the families of one report."""

    def __init__(self, report: Host) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        yield from _host(self._report)
        yield from _channels(self._report)
        yield from _rings(self._report)
        yield from _latencies(self._report)


def _host(report: Host) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vmbus_{name}", text, labels=("vm",))
        family.add_metric((report.vm,), value)
        return family

    yield gauge("frontend_connected", "Whether QEMU is connected.", report.connected)
    yield gauge("running", "Whether the virtual CPUs run.", report.running)
    info = GaugeMetricFamily(
        "vmbus_guest_info", "1 while a guest is connected.", labels=("vm", "version", "features")
    )
    if report.version:
        info.add_metric((report.vm, report.version, ",".join(report.features)), 1)
    yield info
    memory = sum(size for _, size in report.memory)
    yield gauge("guest_memory_bytes", "Guest RAM that is mapped.", memory)
    yield gauge("gpadl_pages", "Pages counted against the GPADL quota.", report.gpadl_pages)
    quotas = GaugeMetricFamily("vmbus_quota", "What the guest may take.", labels=("vm", "quota"))
    for name, limit in report.quotas.items():
        quotas.add_metric((report.vm, name), limit)
    yield quotas
    yield gauge(
        "posts_waiting", "Host messages not yet in the guest's SIM page.", report.posts_waiting
    )
    yield gauge("messages_held", "Guest messages that wait for room.", report.messages_held)
    for name, text, counts in (
        ("received", "Channel messages from the guest.", report.messages_in),
        ("sent", "Channel messages to the guest.", report.messages_out),
    ):
        family = CounterMetricFamily(f"vmbus_messages_{name}", text, labels=("vm", "type"))
        for kind, count in sorted(counts.items()):
            family.add_metric((report.vm, kind), count)
        yield family
    errors = CounterMetricFamily(
        "vmbus_guest_errors", "Rules that the guest has broken.", labels=("vm",)
    )
    errors.add_metric((report.vm,), report.guest_errors)
    yield errors


def _labels(report: Host, channel: Channel) -> tuple[str, str, str]:
    role = channel.role + (f"/{channel.subchannel}" if channel.subchannel else "")
    return report.vm, channel.device, role


def _channels(report: Host) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "vmbus_channel_open", "1 for a channel that is open.", labels=(*_LABELS, "id")
    )
    for channel in report.channels:
        state.add_metric((*_labels(report, channel), str(channel.id)), channel.state == "open")
    yield state
    counters: tuple[tuple[str, str, Callable[[Channel], int]], ...] = (
        ("doorbells", "Doorbells of the guest.", lambda c: c.counters.doorbells),
        ("interrupts", "Interrupts to the guest.", lambda c: c.counters.interrupts),
        ("received_packets", "Packets read.", lambda c: c.counters.packets_in),
        ("sent_packets", "Packets written.", lambda c: c.counters.packets_out),
        ("received_bytes", "Bytes of packets read.", lambda c: c.counters.bytes_in),
        ("sent_bytes", "Bytes of packets written.", lambda c: c.counters.bytes_out),
    )
    for name, text, count in counters:
        counter = CounterMetricFamily(f"vmbus_channel_{name}", text, labels=_LABELS)
        for channel in report.channels:
            counter.add_metric(_labels(report, channel), count(channel))
        yield counter
    flight = GaugeMetricFamily(
        "vmbus_channel_packets_in_flight", "Packets under way.", labels=(*_LABELS, "where")
    )
    for channel in report.channels:
        for where in (
            "held",
            "unread_requests",
            "unread_completions",
            "queued_packets",
            "queued_completions",
            "awaiting_completion",
        ):
            labels = (*_labels(report, channel), where)
            flight.add_metric(labels, getattr(channel.flight, where))
    yield flight
    gauges: tuple[tuple[str, str, Callable[[Channel], int]], ...] = (
        ("gpadls", "GPADLs of the channel.", lambda c: c.gpadl_count),
        ("gpadl_pages", "Pages of the channel's GPADLs.", lambda c: c.gpadl_pages),
        ("faulted", "1 if the guest broke its rings or packets.", lambda c: bool(c.faults)),
    )
    for name, text, value in gauges:
        gauge = GaugeMetricFamily(f"vmbus_channel_{name}", text, labels=_LABELS)
        for channel in report.channels:
            gauge.add_metric(_labels(report, channel), value(channel))
        yield gauge


def _rings(report: Host) -> Iterator[Metric]:
    values: tuple[tuple[str, str, Callable[[Ring], int | None]], ...] = (
        ("size_bytes", "Bytes of data of an open ring.", lambda ring: ring.size),
        ("used_bytes", "Bytes between out and in.", lambda ring: ring.used),
        ("interrupt_masked", "The ring's interrupt mask.", lambda ring: ring.interrupt_mask),
        ("pending_send_bytes", "Room the writer waits for.", lambda ring: ring.pending_send_size),
    )
    for name, text, value in values:
        gauge = GaugeMetricFamily(f"vmbus_ring_{name}", text, labels=(*_LABELS, "direction"))
        for channel in report.channels:
            for direction, ring in (
                ("guest_to_host", channel.guest_to_host),
                ("host_to_guest", channel.host_to_guest),
            ):
                number = value(ring) if ring is not None else None
                if number is not None:
                    gauge.add_metric((*_labels(report, channel), direction), number)
        yield gauge


def _latencies(report: Host) -> Iterator[Metric]:
    histograms: tuple[tuple[str, str, Callable[[Channel], Latency]], ...] = (
        (
            "doorbell_to_callback",
            "From a doorbell to the callback for the first request it brought.",
            lambda channel: channel.doorbell_to_callback,
        ),
        (
            "request_to_completion",
            "From that callback to the completion of the request.",
            lambda channel: channel.request_to_completion,
        ),
    )
    for name, text, latency in histograms:
        family = HistogramMetricFamily(f"vmbus_channel_{name}_seconds", text, labels=_LABELS)
        for channel in report.channels:
            found = latency(channel)
            family.add_metric(
                _labels(report, channel), _cumulative(found), sum_value=found.sum_us / 1e6
            )
        yield family


def _cumulative(latency: Latency) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for power, count in enumerate(latency.counts):
        total += count
        last = power == len(latency.counts) - 1
        buckets.append(("+Inf" if last else str((1 << power) / 1e6), total))
    return buckets
