# SPDX-License-Identifier: MIT
"""A guest's half of VMBus: builds and parses channel messages by hand, and minds the rules.

Written from the tables of the protocol (offsets and sizes as they stand there), and from what Linux
does, not from `emulator`: the two check each other. RAM is an anonymous memfd, so that a host can
map it like QEMU's.

The guest believes nothing: every message that it did not ask for, that comes twice, goes to the
wrong place or has the wrong size is a `HostBrokeRule`. It frees pages exactly when the protocol
says that it may, and tells a listener, who can look whether the host still uses them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

PAGE = 4096
MONITOR_PAGES = (0x1000, 0x2000)
INTERRUPT_PAGE = 0x3000
NO_VP = 0xFFFFFFFF
SUCCESS = 0

# Types, from the table of control messages.
OFFER_CHANNEL, RESCIND, REQUEST_OFFERS, ALL_OFFERS_DELIVERED, OPEN_CHANNEL, OPEN_RESULT = range(
    1, 7
)
CLOSE_CHANNEL, GPADL_HEADER, GPADL_BODY, GPADL_CREATED, GPADL_TEARDOWN, GPADL_TORNDOWN = range(
    7, 13
)
RELID_RELEASED, INITIATE_CONTACT, VERSION_RESPONSE, UNLOAD, UNLOAD_COMPLETE = range(13, 18)
OPEN_RESERVED, CLOSE_RESERVED, CLOSE_RESERVED_RESPONSE = range(18, 21)
TL_CONNECT_REQUEST, MODIFY_CHANNEL, TL_CONNECT_RESULT, MODIFY_CHANNEL_RESPONSE = range(21, 25)
MODIFY_CONNECTION, MODIFY_CONNECTION_RESPONSE, PAUSE, PAUSE_RESPONSE, RESUME = range(25, 30)

# name -> (offset, size) in the body, and the size of the body.
FIELDS: dict[int, tuple[int, dict[str, tuple[int, int]]]] = {
    OFFER_CHANNEL: (
        188,
        {
            "interface_id": (0, 16),
            "instance_id": (16, 16),
            "reserved": (32, 16),
            "flags": (48, 2),
            "mmio_megabytes": (50, 2),
            "user_defined": (52, 120),
            "subchannel_index": (172, 2),
            "mmio_megabytes_optional": (174, 2),
            "channel_id": (176, 4),
            "monitor_id": (180, 1),
            "monitor_allocated": (181, 1),
            "is_dedicated": (182, 2),
            "connection_id": (184, 4),
        },
    ),
    RESCIND: (4, {"channel_id": (0, 4)}),
    ALL_OFFERS_DELIVERED: (0, {}),
    OPEN_RESULT: (12, {"channel_id": (0, 4), "open_id": (4, 4), "status": (8, 4)}),
    GPADL_CREATED: (12, {"channel_id": (0, 4), "gpadl_id": (4, 4), "status": (8, 4)}),
    GPADL_TORNDOWN: (4, {"gpadl_id": (0, 4)}),
    VERSION_RESPONSE: (8, {"supported": (0, 1), "state": (1, 1), "pad": (2, 2), "word": (4, 4)}),
    UNLOAD_COMPLETE: (0, {}),
    TL_CONNECT_RESULT: (36, {"endpoint_id": (0, 16), "service_id": (16, 16), "status": (32, 4)}),
    MODIFY_CHANNEL_RESPONSE: (8, {"channel_id": (0, 4), "status": (4, 4)}),
    CLOSE_RESERVED_RESPONSE: (4, {"channel_id": (0, 4)}),
    MODIFY_CONNECTION_RESPONSE: (1, {"state": (0, 1)}),
    PAUSE_RESPONSE: (0, {}),
}


# From 6.0 the version response has one more field.
VERSION_RESPONSE_2 = 12


class HostBrokeRule(AssertionError):
    """The host sent what it must not send."""


@dataclass(frozen=True)
class Heard:
    """One message from the host: its type and body."""

    type: int
    body: bytes

    def __getitem__(self, name: str) -> int:
        return int.from_bytes(self.raw(name), "little")

    def raw(self, name: str) -> bytes:
        """Return a field's bytes."""
        offset, size = (8, 4) if name == "features" else FIELDS[self.type][1][name]
        return self.body[offset : offset + size]


def u16(*values: int) -> bytes:
    """Encode u16s, little endian."""
    return b"".join(value.to_bytes(2, "little") for value in values)


def u32(*values: int) -> bytes:
    """Encode u32s, little endian."""
    return b"".join(value.to_bytes(4, "little") for value in values)


def u64(*values: int) -> bytes:
    """Encode u64s, little endian."""
    return b"".join(value.to_bytes(8, "little") for value in values)


@dataclass
class GuestGpadl:
    """One GPADL; `unsent` is what has not been sent yet of its ranges."""

    gpadl_id: int
    channel_id: int
    pfns: list[int]
    unsent: bytes
    state: str = "sending"  # sending, created?, created, torndown?


@dataclass
class GuestChannel:
    """What the guest knows of a channel; `opening` are open ids that are not answered yet."""

    offer: Heard
    rescinded: bool = False
    is_open: bool = False
    opening: list[int] = field(default_factory=list)
    gpadls: dict[int, GuestGpadl] = field(default_factory=dict)

    @property
    def channel_id(self) -> int:
        """The relid."""
        return self.offer["channel_id"]


class ModelGuest:
    """A guest that posts by calling `post(connection_id, payload)`."""

    def __init__(self, post: Callable[[int, bytes], None], *, pages: int = 16384) -> None:
        self._post = post
        self.ram_fd = os.memfd_create("model-guest")
        os.ftruncate(self.ram_fd, pages * PAGE)
        self.ram = mmap.mmap(self.ram_fd, pages * PAGE)
        # Not in order, so that nobody gets away with contiguous pages.
        self.free_pages = [pfn for odd in (1, 0) for pfn in range(4, pages) if pfn % 2 == odd]
        self.pages_freed: Callable[[list[int]], None] = lambda pfns: None
        self.heard: list[Heard] = []
        self.next_gpadl, self.next_open = 0xE1E10, 1
        self.forget()

    def forget(self) -> None:
        """Be another kernel, that knows nothing of the one before; RAM is free again."""
        for channel in getattr(self, "channels", {}).values():
            for gpadl in channel.gpadls.values():
                self.free_pages += gpadl.pfns
        self.version = 0
        self.port = 4
        self.target = (0, 2)
        self.connected = False
        self.contacting = self.unloading = False
        self.offers_asked = self.offers_complete = False
        self.channels: dict[int, GuestChannel] = {}
        self.modifying: list[int] = []
        self.features = self.features_asked = 0
        self.pausing = self.paused = False
        self.interrupt_page = 0

    def close(self) -> None:
        """Give RAM back."""
        self.ram.close()
        os.close(self.ram_fd)

    # What the guest sends.

    def post(self, kind: int, body: bytes = b"") -> None:
        """Post a message to where the host listens."""
        self._post(self.port, u32(kind, 0) + body)

    def contact(
        self,
        version: int = 0x50003,
        *,
        vp: int = 0,
        sint: int = 2,
        vtl: int = 0,
        port: int | None = None,
        monitors: tuple[int, int] = MONITOR_PAGES,
        interrupt_page: int = INTERRUPT_PAGE,
        client_id: bytes = b"",
        features: int = 0,
    ) -> None:
        """Ask for a connection, as a kernel that has just started does."""
        self.forget()
        self.version = version
        named = version >= 0x50000
        self.port = port if port is not None else (4 if named else 1)
        info = (
            bytes([sint, vtl, 0, 0]) + u32(features)
            if named and self.port == 4
            else u64(interrupt_page)
        )
        # Where the answer has to arrive.
        usable = sint if named and self.port == 4 and 0 < sint < 16 else 2
        self.target = (vp if version >= 0x30000 else 0, usable)
        self.interrupt_page = interrupt_page
        self.contacting = True
        self.features_asked = features
        self.post(INITIATE_CONTACT, u32(version, vp) + info + u64(*monitors) + client_id)

    def request_offers(self) -> None:
        """Ask for the offers."""
        self.offers_asked = True
        self.post(REQUEST_OFFERS)

    def connect(self, version: int = 0x50003, *, vp: int = 0, sint: int = 2) -> None:
        """Contact and ask for offers, with a host that answers at once."""
        self.contact(version, vp=vp, sint=sint)
        self.request_offers()

    def allocate(self, pages: int) -> list[int]:
        """Take pages that are free; RAM that is used up is the caller's mistake."""
        taken, self.free_pages = self.free_pages[:pages], self.free_pages[pages:]
        assert len(taken) == pages, "the model guest is out of memory"
        return taken

    def gpadl_begin(
        self,
        channel_id: int,
        pages: int,
        *,
        ranges: Iterable[bytes] = (),
        gpadl_id: int | None = None,
    ) -> GuestGpadl:
        """Send the header of a GPADL of `pages` pages in one range (or of the ranges given)."""
        pfns = self.allocate(pages)
        parts = list(ranges) or [u32(pages * PAGE, 0) + u64(*pfns)]
        data = b"".join(parts)
        if gpadl_id is None:
            gpadl_id, self.next_gpadl = self.next_gpadl, self.next_gpadl + 1
        gpadl = GuestGpadl(gpadl_id, channel_id, pfns, data)
        self.channels[channel_id].gpadls[gpadl_id] = gpadl
        # A message is 240 bytes with 8 of message header: 220 are left, whole u64s of that.
        first, gpadl.unsent = data[: 27 * 8], data[27 * 8 :]
        if not gpadl.unsent:
            gpadl.state = "created?"
        self.post(GPADL_HEADER, u32(channel_id, gpadl_id) + u16(len(data), len(parts)) + first)
        return gpadl

    def gpadl_go_on(self, gpadl: GuestGpadl, size: int = 28 * 8) -> None:
        """Send the next body."""
        piece, gpadl.unsent = gpadl.unsent[:size], gpadl.unsent[size:]
        if not gpadl.unsent:
            gpadl.state = "created?"
        self.post(GPADL_BODY, u32(0, gpadl.gpadl_id) + piece)

    def make_gpadl(self, channel_id: int, pages: int) -> GuestGpadl:
        """Send a whole GPADL of one range."""
        gpadl = self.gpadl_begin(channel_id, pages)
        while gpadl.unsent:
            self.gpadl_go_on(gpadl)
        return gpadl

    def open_channel(
        self,
        channel_id: int,
        gpadl_id: int,
        *,
        split: int = 2,
        target_vp: int = 0,
        user_data: bytes = b"",
        signal: tuple[int, int, int] | None = None,
    ) -> int:
        """Open; ``signal`` is connection id, event flag and flags of the longer form."""
        open_id, self.next_open = self.next_open, self.next_open + 1
        self.channels[channel_id].opening.append(open_id)
        self.post(
            OPEN_CHANNEL,
            u32(channel_id, open_id, gpadl_id, target_vp, split)
            + user_data.ljust(120, b"\0")
            + (u32(signal[0]) + u16(*signal[1:]) if signal else b""),
        )
        return open_id

    def close_channel(self, channel_id: int) -> None:
        """Close a channel."""
        channel = self.channels[channel_id]
        channel.is_open = False
        channel.opening.clear()
        self.post(CLOSE_CHANNEL, u32(channel_id))

    def teardown(self, gpadl: GuestGpadl) -> None:
        """Ask for a GPADL's pages back."""
        gpadl.state = "torndown?"
        self.post(GPADL_TEARDOWN, u32(gpadl.channel_id, gpadl.gpadl_id))

    def release(self, channel_id: int) -> None:
        """Let go of a channel; whoever was rescinded has its pages back now."""
        channel = self.channels.pop(channel_id)
        if channel.rescinded:
            for gpadl in channel.gpadls.values():
                self._freed(gpadl)
        else:
            for gpadl in channel.gpadls.values():
                self.free_pages += gpadl.pfns
        self.post(RELID_RELEASED, u32(channel_id))

    def modify(self, channel_id: int, target_vp: int) -> None:
        """Move a channel's interrupts to another VP."""
        if self.version >= 0x50003:
            self.modifying.append(channel_id)
        self.post(MODIFY_CHANNEL, u32(channel_id, target_vp))

    def pause(self) -> None:
        """Ask the host to send nothing for a while (6.0)."""
        self.pausing = True
        self.post(PAUSE)

    def resume(self) -> None:
        """Hear the host again (6.0)."""
        self.paused = False
        self.post(RESUME)

    def unload(self) -> None:
        """End the connection."""
        self.unloading = True
        self.paused = False
        self.post(UNLOAD)
        if self.version < 0x10001:
            # There is no answer; a guest so old takes its memory back some time later.
            self.forget()

    # The interrupt page, below 2.4: its first half is the host's to set, the second one ours.

    @property
    def shares_interrupt(self) -> bool:
        """Whether all channels share one event flag, and the interrupt page tells which."""
        return self.version < 0x20004

    def set_bit(self, channel_id: int) -> None:
        """Mark a channel for the host, before the event."""
        self.ram[self.interrupt_page + 2048 + channel_id // 8] |= 1 << channel_id % 8

    def take_bits(self) -> list[int]:
        """Take the channels that the host has marked, as vmbus_chan_sched() of Linux does."""
        taken = []
        for channel_id in range(256):
            at, bit = self.interrupt_page + channel_id // 8, 1 << channel_id % 8
            if self.ram[at] & bit:
                self.ram[at] &= ~bit
                taken.append(channel_id)
        return taken

    def trigger(self, monitor_id: int) -> None:
        """Set a trigger in the monitor page, as vmbus_setevent() of Linux does."""
        self.ram[MONITOR_PAGES[1] + 8 + 8 * (monitor_id // 32) + monitor_id % 32 // 8] |= (
            1 << monitor_id % 8
        )

    # What the guest hears.

    def deliver(self, vp: int, sint: int, payload: bytes) -> Heard:
        """Take a message out of the SIM slot of (`vp`, `sint`)."""
        kind, padding = int.from_bytes(payload[:4], "little"), payload[4:8]
        self._rule(len(payload) <= 240, "a message has at most 240 bytes")
        self._rule(padding == bytes(4), "the header's padding is zero")
        self._rule(kind in FIELDS, f"type {kind} is for a guest")
        heard = Heard(kind, payload[8:])
        size = FIELDS[kind][0]
        if kind == VERSION_RESPONSE and self.version >= 0x60000 and heard["supported"]:
            size = VERSION_RESPONSE_2
        self._rule(len(heard.body) == size, f"type {kind} has its size")
        self._rule(not self.paused, "nothing comes while the connection is paused")
        self._rule((vp, sint) == self.target, f"{(vp, sint)} is where the guest listens")
        self.heard.append(heard)
        self._HANDLERS[kind](self, heard)
        return heard

    def _rule(self, kept: bool, rule: str) -> None:
        if not kept:
            raise HostBrokeRule(rule)

    def _version_response(self, heard: Heard) -> None:
        self._rule(self.contacting, "a version response answers a contact")
        self.contacting = False
        self._rule(heard["pad"] == 0, "padding is zero")
        if heard["supported"] and heard["state"] == 0:
            self.connected = True
            word = self.version if self.version < 0x50000 else self.port
            if self.version >= 0x60000:
                self.features = heard["features"]
                self._rule(not self.features & ~self.features_asked, "features were asked for")
                self._rule(not self.features & 0xD0, "some features are never granted")
            self._rule(heard["word"] == word, "the last word is the version, or the port from 5.0")

    def _offer(self, heard: Heard) -> None:
        self._rule(self.connected and self.offers_asked, "offers come when asked for")
        channel_id = heard["channel_id"]
        limit = 256 if self.shares_interrupt else 2048
        self._rule(0 < channel_id < limit, "a channel id fits the event flags")
        self._rule(channel_id not in self.channels, "a channel id is not in use")
        self._rule(heard["connection_id"] == self.target[1] << 12 | channel_id, "event connection")
        self._rule(heard["is_dedicated"] == 1, "interrupts are dedicated")
        monitor_id, allocated = heard["monitor_id"], heard["monitor_allocated"]
        self._rule(allocated in (0, 1), "a trigger is allocated or not")
        self._rule((monitor_id < 128) if allocated else (monitor_id == 255), "a monitor id")
        if allocated:
            others = [c.offer["monitor_id"] for c in self.channels.values()]
            self._rule(monitor_id not in others, "a trigger is for one channel")
        self._rule(heard.raw("reserved") == bytes(16), "reserved bytes are zero")
        self.channels[channel_id] = GuestChannel(heard)

    def _all_offers(self, _: Heard) -> None:
        self._rule(self.offers_asked and not self.offers_complete, "the end comes once")
        self.offers_complete = True

    def _channel(self, heard: Heard) -> GuestChannel:
        self._rule(heard["channel_id"] in self.channels, "the guest knows the channel")
        return self.channels[heard["channel_id"]]

    def _rescind(self, heard: Heard) -> None:
        channel = self._channel(heard)
        self._rule(not channel.rescinded, "a channel is rescinded once")
        channel.rescinded = True
        channel.is_open = False
        channel.opening.clear()

    def _open_result(self, heard: Heard) -> None:
        channel = self._channel(heard)
        self._rule(not channel.rescinded, "nothing is opened on a rescinded channel")
        self._rule(heard["open_id"] in channel.opening, "an open result answers an open")
        channel.opening.remove(heard["open_id"])
        if heard["status"] == SUCCESS:
            self._rule(not channel.is_open, "a channel is opened once")
            channel.is_open = True

    def _gpadl_created(self, heard: Heard) -> None:
        gpadl = self._channel(heard).gpadls.get(heard["gpadl_id"])
        self._rule(gpadl is not None, "the GPADL is the channel's")
        assert gpadl is not None
        refused = heard["status"] != SUCCESS
        self._rule(
            gpadl.state == "created?" or (refused and gpadl.state == "sending"),
            "a GPADL is created when it is complete, and once",
        )
        if refused:
            del self.channels[gpadl.channel_id].gpadls[gpadl.gpadl_id]
            self._freed(gpadl)
        gpadl.state = "created"

    def _gpadl_torndown(self, heard: Heard) -> None:
        gone = [
            gpadl
            for channel in self.channels.values()
            for gpadl in channel.gpadls.values()
            if (gpadl.gpadl_id, gpadl.state) == (heard["gpadl_id"], "torndown?")
        ]
        self._rule(len(gone) == 1, "a teardown is answered once")
        del self.channels[gone[0].channel_id].gpadls[gone[0].gpadl_id]
        self._freed(gone[0])

    def _unload_complete(self, _: Heard) -> None:
        self._rule(self.unloading, "unload complete answers an unload")
        self._rule(self.version >= 0x10001, "unload complete is not of the first version")
        for channel in self.channels.values():
            for gpadl in channel.gpadls.values():
                self.pages_freed(gpadl.pfns)
        self.forget()

    def _modified(self, heard: Heard) -> None:
        self._rule(heard["channel_id"] in self.modifying, "the response answers a modify")
        self.modifying.remove(heard["channel_id"])

    def _connection_modified(self, heard: Heard) -> None:
        self._rule(bool(self.features & 4), "the connection can be modified")

    def _paused(self, _: Heard) -> None:
        self._rule(self.pausing, "a pause response answers a pause")
        self.pausing, self.paused = False, True

    def _connect_result(self, heard: Heard) -> None:
        self._rule(heard["status"] != SUCCESS, "only failures are told")

    def _freed(self, gpadl: GuestGpadl) -> None:
        self.free_pages += gpadl.pfns
        self.pages_freed(gpadl.pfns)

    _HANDLERS: ClassVar[dict[int, Callable[[ModelGuest, Heard], None]]] = {
        OFFER_CHANNEL: _offer,
        RESCIND: _rescind,
        ALL_OFFERS_DELIVERED: _all_offers,
        OPEN_RESULT: _open_result,
        GPADL_CREATED: _gpadl_created,
        GPADL_TORNDOWN: _gpadl_torndown,
        VERSION_RESPONSE: _version_response,
        UNLOAD_COMPLETE: _unload_complete,
        TL_CONNECT_RESULT: _connect_result,
        MODIFY_CHANNEL_RESPONSE: _modified,
        MODIFY_CONNECTION_RESPONSE: _connection_modified,
        PAUSE_RESPONSE: _paused,
    }

    # For tests.

    def since(self, mark: int) -> list[int]:
        """Return the types heard since `len(self.heard)` was `mark`."""
        return [heard.type for heard in self.heard[mark:]]

    @property
    def last(self) -> Heard:
        """The last message heard."""
        return self.heard[-1]
