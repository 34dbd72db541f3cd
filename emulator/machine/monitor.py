# SPDX-License-Identifier: MIT
"""Monitored notifications: a guest sets a trigger in a page, and somebody looks at it in time.

On Hyper-V that is the hypervisor, which looks "at a rate that is subject to the latency hint" of a
trigger (Microsoft, Monitored Notifications; HV_MONITOR_PAGE) and may look more seldom where that
is cheaper. Here it is the backend: nothing in QEMU or KVM tells it of a store to a page of RAM.

Looking costs a timer and a wake-up each time, so it must not be done when nothing comes:

* Only while a channel with a trigger is open and the virtual CPUs run. Else there is no timer.
* At the lowest latency of the open channels, as long as triggers come or answers are expected: a
  signal to the guest on a monitored channel is mostly followed by one of it.
* After :data:`PATIENCE` looks without a trigger, half as often with each, down to one look in
  :data:`IDLE_SECONDS`. That is the price of the feature: the first notification after a pause may
  be late by so much, where a guest that uses the event connection would have been heard at once.
  Hence it is off by default, and for channels that are busy or can wait. An idle backend with such
  a channel takes less than 1 % of a core (docs/vmbus.md), and none without.

The event loop counts milliseconds, so a latency below one is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from emulator.bus.pages import MONITORS_IN_GROUP, MonitorPage
from emulator.devices import Device, DeviceStateError
from emulator.kmcl import ServerChannel
from emulator.machine.config import HostConfig

PATIENCE: Final = 16
"""Looks without a trigger before the interval grows."""
IDLE_SECONDS: Final = 0.016
DEFAULT_LATENCY: Final = 10_000
"""1 ms, in units of 100 ns: for a channel whose guest still uses a trigger that was configured in
the machine that it was saved on."""


CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


def monitored_channels(
    config: HostConfig, devices: Mapping[str, Device]
) -> dict[ServerChannel, int]:
    """Return the channels that have a trigger, with their latency in units of 100 ns.

    Raises :class:`DeviceStateError` for one that a device does not have.
    """
    found = {}
    for device in config.devices:
        channels = devices[device.name].channels
        for role, microseconds in device.monitored_us.items():
            if role not in channels:
                raise DeviceStateError(
                    f"device {device.name}: monitored_us names a channel {role!r}; "
                    f"it has {', '.join(channels)}"
                )
            found[channels[role]] = microseconds * 10
    return found


class MonitorTriggers:
    """Looks at the triggers of one guest."""

    def __init__(self, call_later: CallLater | None = None) -> None:
        """Start without a page and without channels; timers are the running loop's, or by
        ``call_later``.
        """
        self._call_later = call_later
        self._page: MonitorPage | None = None
        self._channels: dict[int, tuple[int, Callable[[], None], int]] = {}
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._empty = 0
        self.looks = 0
        """How often the page was looked at, for inspection."""

    def use(self, page: MonitorPage | None) -> None:
        """Look at ``page`` from now on."""
        self._page = page
        if page is not None:
            for monitor_id, (_, _, latency) in self._channels.items():
                page.set_latency(monitor_id, latency)
        self._restart()

    def add(self, monitor_id: int, channel_id: int, rung: Callable[[], None], latency: int) -> None:
        """Call ``rung`` when the trigger is set, about every ``latency`` x 100 ns at most."""
        self._channels[monitor_id] = (channel_id, rung, latency)
        if self._page is not None:
            self._page.set_latency(monitor_id, latency)
        self._restart()

    def remove(self, monitor_id: int, channel_id: int) -> None:
        """Forget a channel, unless the trigger is another's by now; idempotent."""
        if self._channels.get(monitor_id, (0,))[0] == channel_id:
            del self._channels[monitor_id]
            if not self._channels:
                self._restart()

    @property
    def looking(self) -> bool:
        """Whether the page will be looked at again."""
        return self._timer is not None

    def run(self, running: bool) -> None:
        """Look while ``running`` is true: while the virtual CPUs run."""
        self._running = running
        self._restart()

    def expect(self) -> None:
        """A trigger may come soon: look at the lowest latency again, from now on."""
        if self._empty > PATIENCE:
            self._restart()
        # Else the next look is due in time, and must not be put off by one signal after the other.
        self._empty = 0

    def _restart(self) -> None:
        self._empty = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wait()

    def _wait(self) -> None:
        if self._page is None or not self._channels or not self._running:
            return
        latency = min(latency for _, _, latency in self._channels.values()) / 1e7
        interval = min(latency * 2.0 ** max(0, self._empty - PATIENCE), max(IDLE_SECONDS, latency))
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._timer = call_later(interval, self._look)

    def _look(self) -> None:
        self._timer = None
        self.looks += 1
        if self._page is None:
            return
        triggered: list[int] = []
        # All bits first: what a channel does when it looks may end the connection.
        for group in sorted({monitor_id // MONITORS_IN_GROUP for monitor_id in self._channels}):
            triggered += self._page.take(group)
        self._empty = 0 if triggered else self._empty + 1
        for monitor_id in triggered:
            if (channel := self._channels.get(monitor_id)) is not None:
                channel[1]()
        if self._timer is None:
            self._wait()
