# SPDX-License-Identifier: MIT
"""The VMBus host of one VM: joins the link, the bus, the rings and the devices.

The parts below are pure: the bus turns messages into effects, a KMCL channel turns rings into
calls. This file carries effects and calls out: it makes eventfds, maps rings, and passes what
happens from one part to the next. It decides nothing about channels.

The order of a load matters and is kept in :meth:`VmbusHost.load`: bus first, then each device,
then "revoke unclaimed"; all of it into new objects, which replace the old ones only when nothing
was refused.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import assert_never

import msgspec

from emulator.bus import (
    BusConnected,
    BusDisconnected,
    BusHost,
    ChannelClosing,
    ChannelMoved,
    ChannelOpening,
    ChannelReleased,
    Effect,
    GpadlCreated,
    GpadlTearingDown,
    GuestError,
    Offer,
    OfferKey,
    OpenParams,
    RestoreMismatch,
    SendMessage,
    SubchannelOrphaned,
)
from emulator.bus.pages import SHARED_EVENT_FLAG
from emulator.devices import Device, DeviceStateError, make_device
from emulator.kmcl import KmclError, OfferParams, ServerChannel
from emulator.kmcl.countdown import countdown
from emulator.link import Post, Region, Session, StateRefused, Status
from emulator.machine.config import HostConfig
from emulator.machine.doorbells import add_doorbell, poll_for
from emulator.machine.draining import Draining
from emulator.machine.guestlog import vm_logger
from emulator.machine.hoststate import (
    STATE_VERSION,
    DeferredMessage,
    HostState,
    check,
    decode,
)
from emulator.machine.inspect import MessageMeter
from emulator.machine.monitor import DEFAULT_LATENCY, monitored_channels
from emulator.machine.signals import STUCK_SECONDS, GuestSignals, looks_stuck
from emulator.machine.slots import PAGE, Slot, Slots
from emulator.machine.tracing import Tracing
from emulator.memory import (
    ATOMIC,
    CodeMap,
    GpaError,
    GuestMemory,
    MemoryMapError,
    PageView,
    RamRegion,
)
from emulator.ring import IncomingRing, OutgoingRing
from emulator.trace.record import Event
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

log = logging.getLogger(__name__)


class VmbusHost:
    """The VMBus host of one VM. Everything runs on one event loop; nothing blocks.

    It is the :class:`~emulator.link.SessionHandler` of the connection to QEMU and the
    :class:`~emulator.kmcl.ChannelPort` of all channels.
    """

    def __init__(self, config: HostConfig) -> None:
        """Make the host with the devices of ``config``, powered on and offered."""
        self._config = config
        self._log = vm_logger(log, config.vm)
        self._session: Session | None = None
        self._memory = GuestMemory()
        self._code: CodeMap | None = None
        self._deferred: deque[DeferredMessage] = deque()
        self._foreign = 0
        self._pumping = False
        self._stopped = True
        self._restoring: dict[OfferKey, OpenParams | None] = {}
        self._anew = False
        self.guest_errors: deque[str] = deque(maxlen=64)
        self.messages = MessageMeter()
        self.tracing = Tracing(self)
        self.frontend_gone: Callable[[], None] = lambda: None
        """Called when a connection to QEMU has ended and the guest is forgotten."""
        self._draining = Draining(self._log, self.undrained)
        self._signals = GuestSignals(self._memory)
        self._bus = self._make_bus()
        self._slots = Slots()
        self._monitored: dict[ServerChannel, int] = {}
        self.devices: dict[str, Device] = self._make_devices()
        for device in self.devices.values():
            device.power_on()

    def _make_bus(self) -> BusHost:
        config = dataclasses.replace(self._config.bus, bit_pages=ATOMIC)
        return BusHost(config, self._signals.is_ram, self._is_vp)

    def _is_vp(self, vp: int) -> bool:
        # Indices of CPUs that can be plugged are below as well; whether one is there, QEMU knows.
        return self._session is None or vp < self._session.vcpus

    def _make_devices(self) -> dict[str, Device]:
        devices = {
            device.name: make_device(
                device.kind, device.name, self._config.vm, self, device.options
            )
            for device in self._config.devices
        }
        self._monitored = monitored_channels(self._config, devices)
        return devices

    def attach(self, session: Session) -> None:
        """Use ``session`` as the connection to the frontend."""
        self._session = session
        self.tracing.event(Event.QEMU_CONNECTED)

    @property
    def connected(self) -> bool:
        """Whether a frontend is connected."""
        return self._session is not None

    # For inspection (emulator.machine.inspect).

    @property
    def config(self) -> HostConfig:
        """What the host was made from."""
        return self._config

    @property
    def running(self) -> bool:
        """Whether the virtual CPUs run."""
        return not self._stopped

    @property
    def posts_waiting(self) -> int:
        """Messages for the guest that are not known to be in its SIM page."""
        return len(self._session.posts) if self._session is not None else 0

    @property
    def messages_held(self) -> int:
        """Messages of the guest that wait until it has read enough of ours."""
        return len(self._deferred)

    def server_channel(self, key: OfferKey) -> ServerChannel | None:
        """Return the KMCL channel of an offer; None if it has been rescinded."""
        slot = self._slots.by_key.get(key)
        return slot.channel if slot is not None else None

    @property
    def bus(self) -> BusHost:
        """The bus."""
        return self._bus

    def memory_regions(self) -> list[tuple[int, int]]:
        """Return address and size of each region of the guest's memory."""
        return self._memory.regions

    def rings(self) -> dict[str, int]:
        """Return the guest-physical address of the first page of each open channel's rings."""
        return {
            str(slot.key): slot.params.ring_pfns[0] * PAGE
            for slot in self._slots.by_key.values()
            if slot.params is not None
        }

    # SessionHandler: what the frontend does.

    def memory_changed(self, regions: tuple[Region, ...], fds: list[int]) -> None:
        """Map guest RAM. Rings that are open keep the mapping they were made on."""
        try:
            self._memory.replace(
                [
                    (RamRegion(region.gpa, region.size, region.fd_offset), fd)
                    for region, fd in zip(regions, fds, strict=True)
                ]
            )
        except MemoryMapError as error:
            raise ValueError(str(error)) from error
        self._log.info("the guest has %d MiB of memory", self._memory.size >> 20)
        if self._session is not None:
            poll_for(self._config.poll_us, self._session.vcpus)

    def code_map_changed(self, first: tuple[int, ...], fd: int) -> None:
        """Learn where QEMU notes which pages hold translated code."""
        if self._code is not None:
            self._code.close()
        regions = [
            (gpa, size, index)
            for (gpa, size), index in zip(self._memory.regions, first, strict=True)
        ]
        self._code = CodeMap(fd, regions)

    def reset(self) -> None:
        """Close every channel and forget the guest; offers stay."""
        self.tracing.event(Event.RESET)
        self._deferred.clear()
        self._foreign = 0
        for slot in self._slots.by_key.values():
            # QEMU has dropped what was registered; a channel that takes time to close must not ask.
            slot.registered = False
        self._bus.reset()
        self._pump()

    def guest_message(self, connection_id: int, vp_index: int, payload: bytes) -> None:
        """Take a message of the guest, now or when the guest has read enough of ours."""
        self.tracing.guest_message(connection_id, vp_index, payload)
        self._deferred.append(DeferredMessage(connection_id, payload))
        self._take_messages()

    def post_delivered(self) -> None:
        """Go on with guest messages that waited for room."""
        self._take_messages()

    def _take_messages(self) -> None:
        # A guest that asks and never reads would otherwise queue answers here without bound.
        limit = self._config.quotas.queued_messages
        while self._deferred and self._session and len(self._session.posts) < limit:
            message = self._deferred.popleft()
            self.messages.guest_message(message.payload)
            self._bus.guest_message(message.connection_id, message.payload)
            # The answers first: the guest waits for them.
            self._pump()
            if self._foreign:
                # Came with the snapshot: it is not of this frontend's window.
                self._foreign -= 1
            elif self._session is not None:
                self._session.credit()

    def resumed(self) -> None:
        """Run the devices."""
        self._draining.over()
        self._stopped = False
        self._signals.triggers.run(True)
        self.tracing.event(Event.RESUMED)
        for device in self.devices.values():
            device.resume()
        self._take_messages()

    def stopping(self, done: Callable[[], None]) -> None:
        """Pause the devices; they drain what they hold."""
        self._signals.triggers.run(False)

        def drained() -> None:
            self._draining.over()
            self._stopped = True
            self.tracing.event(Event.STOPPED)
            done()

        self._draining.begin()
        if not self.devices:
            drained()
        paused = countdown(len(self.devices), drained)
        for device in list(self.devices.values()):
            device.pause(paused)

    def undrained(self) -> list[str]:
        """Say which requests of the guest the devices have not completed."""
        return [what for device in self.devices.values() for what in device.pause_waits_for()]

    def save(self) -> bytes:
        """Encode the host; raises :class:`StateRefused`."""
        if not self._stopped:
            held = self._draining.waits_for() or "the guest's virtual CPUs run"
            raise StateRefused(f"the devices have not come to rest: {held}")
        try:
            state = HostState(
                version=STATE_VERSION,
                vm=self._config.vm,
                bus=self._bus.save(),
                posts=list(self._session.posts) if self._session else [],
                deferred=list(self._deferred),
                devices=[device.save() for device in self.devices.values()],
            )
        except DeviceStateError as error:
            raise StateRefused(str(error)) from error
        self.tracing.event(Event.SAVED)
        return msgspec.msgpack.encode(state)

    def load(self, state: bytes) -> None:
        """Take the state of :meth:`save`; raises :class:`StateRefused` with all that is wrong."""
        saved = decode(state)
        check(saved, self._config)
        old = (self._bus, self._slots, self.devices, self._monitored)
        old_devices = self.devices
        self._bus, self._slots = self._make_bus(), Slots()
        try:
            self._restoring = {
                channel.key: channel.open for channel in self._bus.restore(saved.bus)
            }
            self.devices = self._make_devices()
            self._restore_devices(saved)
            self._bus.finish_restore()
        except (DeviceStateError, KmclError, RestoreMismatch, GpaError) as error:
            for slot in self._slots.by_key.values():
                self._release(slot)
            if self.devices is not old_devices:
                _close_all(self.devices)
            self._bus, self._slots, self.devices, self._monitored = old
            raise StateRefused(str(error)) from error
        finally:
            self._restoring, self._anew = {}, False
        _close_all(old_devices)
        self._deferred = deque(saved.deferred)
        self._foreign = len(self._deferred)
        self.tracing.event(Event.RESTORED, f"{self._foreign} messages of the guest held")
        if self._session is not None:
            for post in saved.posts:
                self.tracing.host_message(post.vp_index, post.sint, post.payload, resent=True)
                self._session.post(post)

    def _restore_devices(self, saved: HostState) -> None:
        """Restore each device; one that is not what it was begins anew, if that is allowed."""
        states = {device.name: device for device in saved.devices}
        for name, device in self.devices.items():
            state = states.get(name)
            if self._config.devices_may_differ and (
                state is None or state.kind != device.kind or self._has_changed(device)
            ):
                self._log.warning("device %s is not that of the snapshot: it begins anew", name)
                self._anew = True
                device.power_on()
                self._anew = False
            else:
                assert state is not None, "checked before"
                device.restore(state)
        for name in sorted(states.keys() - self.devices.keys()):
            self._log.warning("device %s of the snapshot is not here: it is rescinded", name)

    def _has_changed(self, device: Device) -> bool:
        return any(
            self._bus.has_changed(self._offer_of(channel, channel.offer_params()))
            for channel in device.channels.values()
        )

    def _offer_of(self, channel: ServerChannel, params: OfferParams) -> Offer:
        return Offer(
            key=OfferKey(params.interface, params.instance, params.subchannel_index),
            user_defined=params.user_defined,
            flags=params.flags,
            mmio_megabytes=params.mmio_megabytes,
            mmio_megabytes_optional=params.mmio_megabytes_optional,
            monitored=ATOMIC and channel in self._monitored,
        )

    def loaded(self) -> None:
        """Register the restored channels with the frontend."""
        self._signals.follow(self._bus.pages, self._session)
        for slot in self._slots.by_key.values():
            if slot.params is not None:
                self._register(slot, slot.params)
        self._pump()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the guest of the connection that ended."""
        if error is not None:
            self._log.error("the connection to QEMU ended: %s", error)
        else:
            self._log.info("QEMU closed the connection")
        self._session = None
        self.tracing.event(Event.QEMU_GONE, "" if error is None else str(error))
        if not self._stopped:
            self.stopping(lambda: None)
            self._draining.over()
        self.reset()
        self._memory.close()
        if self._code is not None:
            self._code.close()
            self._code = None
        self.frontend_gone()

    # ChannelPort: what the channels do.

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        """Offer the channel; during a load, claim its restored state.

        Raises :class:`KmclError` INSUFFICIENT_RESOURCES beyond the quota of channels.
        """
        quotas = self._config.quotas
        if len(self._slots.by_key) >= quotas.channels:
            raise KmclError(
                NtStatus.INSUFFICIENT_RESOURCES,
                f"{channel.friendly_name}: quotas.channels is {quotas.channels} and used up",
            )
        channel.limit_transaction_quota(quotas.packets_in_flight)
        offer = self._offer_of(channel, params)
        slot = Slot(offer.key, channel)
        self._slots.add(slot)
        anew = self._anew or (params.force_new and offer.key in self._restoring)
        self._bus.offer(offer, anew=anew)
        opened = None if anew else self._restoring.get(offer.key)
        if opened is not None:
            incoming, outgoing = self._rings(slot, opened)
            channel.port_restored(incoming, outgoing)
        elif not self._restoring:
            self._pump()

    def revoke(self, channel: ServerChannel, done: Callable[[], None]) -> None:
        """Rescind the channel's offer, and first those of its sub-channels; the channel has closed
        itself already.
        """
        slot = self._slots.by_channel[channel]
        for key in self._bus.subchannels(slot.key):
            self._slots.by_key[key].channel.disable(lambda: self.revoke(channel, done))
            return
        self._release(slot)
        self._slots.remove(slot)
        self._bus.rescind(slot.key)
        self._pump()
        done()

    def signal(self, channel: ServerChannel) -> None:
        """Interrupt the guest on the channel's event flag."""
        channel.traffic.meter.interrupts += 1
        slot = self._slots.by_channel[channel]
        interrupt = slot.interrupt
        if interrupt >= 0:
            if slot.params is not None and (
                self._signals.shares_interrupt or slot.params.monitor_id is not None
            ):
                self._signals.interrupt(slot.params)
            # contextlib.suppress costs as much as the system call does.
            try:  # noqa: SIM105
                os.eventfd_write(interrupt, 1)
            except BlockingIOError:
                # The counter is full, so an interrupt is pending anyway.
                pass

    def poll_again(self, channel: ServerChannel) -> None:
        """Look at the channel's rings once more, when everybody else has had a turn."""
        asyncio.get_running_loop().call_soon(channel.port_interrupt)

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        """Return the pages of a GPADL of the channel; raises KeyError."""
        ranges = self._slots.by_channel[channel].gpadls[handle]
        # A driver does not run code out of its buffers, but it may have been there before.
        self.memory_written(tuple(ranges))
        return self._memory.pages([pfn for gpa_range in ranges for pfn in gpa_range.pfns])

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        """Return slices of guest memory for a GPA-direct packet; raises GpaError."""
        try:
            return self._slices(ranges)
        except GpaError:
            # The packet came by a doorbell, which may be ahead of the table of new memory.
            if self._session is None or not self._session.refresh_memory():
                raise
        return self._slices(ranges)

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Have QEMU drop what it has translated of these pages, if it has translated any."""
        if self._code is None or self._session is None:
            return
        if stretches := self._code.holding(ranges):
            self._session.invalidate_code(stretches)

    def _slices(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        return [piece for gpa_range in ranges for piece in self._memory.range(gpa_range)]

    # Effects of the bus.

    def _pump(self) -> None:
        """Carry out what the bus asks for, and what that makes it ask for."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while effects := self._bus.take_effects():
                self._signals.follow(self._bus.pages, self._session)
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._pumping = False

    def _carry_out(self, effect: Effect) -> None:
        self.tracing.effect(effect)
        match effect:
            case SendMessage():
                if self._session is not None:
                    self.tracing.host_message(effect.vp, effect.sint, effect.payload)
                    self.messages.host_message(effect.payload)
                    self._session.post(Post(effect.vp, effect.sint, effect.payload))
            case ChannelOpening():
                self._open(self._slots.by_key[effect.key], effect.params)
            case ChannelClosing():
                self._close(effect.key)
            case ChannelMoved():
                self._move(self._slots.by_key[effect.key], effect.target_vp)
            case GpadlCreated():
                if slot := self._slots.by_key.get(effect.key):
                    slot.gpadls[effect.gpadl_id] = effect.ranges
            case GpadlTearingDown():
                self._tear_down(effect.key, effect.gpadl_id)
            case BusConnected():
                self._log.info("guest connected, VMBus %s", effect.version)
            case BusDisconnected():
                self._log.info("guest disconnected: %s", effect.reason)
            case ChannelReleased():
                self._log.debug("guest released %s", effect.key)
            case SubchannelOrphaned():
                if slot := self._slots.by_key.get(effect.key):
                    slot.channel.disable(lambda: None)
            case GuestError():
                self._blame(effect.text)
            case _:
                assert_never(effect)

    def _tear_down(self, key: OfferKey, gpadl_id: int) -> None:
        slot = self._slots.by_key.get(key)
        if slot is None:
            self._bus.gpadl_released(key, gpadl_id)
            return

        def released() -> None:
            self._bus.gpadl_released(key, gpadl_id)
            self._pump()

        # From here on it cannot be mapped again.
        slot.gpadls.pop(gpadl_id, None)
        slot.channel.gpadls.torn_down(gpadl_id, released)

    def _blame(self, text: str) -> None:
        self._log.warning("guest: %s", text)
        self.guest_errors.append(text)
        self.messages.guest_errors += 1

    def _rings(self, slot: Slot, params: OpenParams) -> tuple[IncomingRing, OutgoingRing]:
        incoming, outgoing = slot.take_rings(self._memory, params)
        self.tracing.rings_made(slot.key, params, incoming, outgoing)
        return incoming, outgoing

    def _open(self, slot: Slot, params: OpenParams) -> None:
        try:
            incoming, outgoing = self._rings(slot, params)
            pfns = tuple(params.ring_pfns)
            self.memory_written((GpaRange(len(pfns) * PAGE, 0, pfns),))
            ok = slot.channel.port_opened(incoming, outgoing).is_success
        except GpaError as error:
            self._blame(f"channel {params.channel_id}: bad ring: {error}")
            ok = False
        except OSError as error:
            # No descriptor left for an eventfd: not the guest's fault, but its open must fail.
            self._log.error("channel %d cannot be opened: %s", params.channel_id, error)
            ok = False
        if ok:
            self._register(slot, params)
            asyncio.get_running_loop().call_later(STUCK_SECONDS, self._unstick, slot, params)
        else:
            self._release(slot)
        self._bus.open_result(slot.key, ok)

    def _register(self, slot: Slot, params: OpenParams) -> None:
        if self._session is None:
            return
        doorbell = slot.doorbell

        def registered(status: Status) -> None:
            # A signal that the guest sent before the registration was lost: look once.
            if status is Status.DONE and slot.doorbell == doorbell:
                slot.channel.port_interrupt()

        slot.registered = True
        add_doorbell(doorbell, slot.channel.port_doorbell)
        self._signals.add(
            params,
            slot.channel.port_doorbell,
            self._monitored.get(slot.channel, DEFAULT_LATENCY),
        )
        self._session.add_doorbell(params.connection_id, doorbell, registered)
        self._move(slot, params.target_vp)

    def _unstick(self, slot: Slot, params: OpenParams) -> None:
        if slot.params is params and not self._stopped and looks_stuck(slot.channel):
            self.signal(slot.channel)

    def _move(self, slot: Slot, target_vp: int | None) -> None:
        if slot.params is None or self._session is None:
            return
        if target_vp is None:
            self._session.del_interrupt(slot.params.channel_id)
            return
        self._session.add_interrupt(
            slot.params.channel_id,
            target_vp,
            slot.params.target_sint,
            SHARED_EVENT_FLAG if self._signals.shares_interrupt else slot.params.event_flag,
            slot.interrupt,
        )

    def _close(self, key: OfferKey) -> None:
        slot = self._slots.by_key.get(key)
        if slot is None:
            self._bus.close_done(key)
            return

        def closed() -> None:
            self._release(slot)
            self._bus.close_done(key)
            self._pump()

        slot.channel.port_closed(closed)

    def _release(self, slot: Slot) -> None:
        """Drop what an open channel has; idempotent."""
        params, registered = slot.params, slot.registered
        slot.let_go()
        if params is not None:
            self._signals.remove(params)
            if registered and self._session is not None:
                self._session.del_doorbell(params.connection_id)
                self._session.del_interrupt(params.channel_id)


def _close_all(devices: dict[str, Device]) -> None:
    for device in devices.values():
        device.close()
