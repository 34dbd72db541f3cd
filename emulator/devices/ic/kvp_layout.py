# SPDX-License-Identifier: MIT
"""Messages of the key-value pair exchange.

Source: Linux include/uapi/linux/hyperv.h, ``struct hv_kvp_msg`` and what is in it, with text as the
host writes it: UTF-16 with its NUL; sizes count bytes, the NUL too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, Self

from emulator.devices.ic.layout import MalformedIc, from_utf16, utf16

KEY_UNITS: Final = 256
VALUE_UNITS: Final = 1024

_HEAD = struct.Struct("<BBxx")


class KvpOp(IntEnum):
    """``enum hv_kvp_exchg_op``."""

    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3
    GET_IP = 4
    SET_IP = 5


class Pool(IntEnum):
    """``enum hv_kvp_exchg_pool``: whose pairs."""

    EXTERNAL = 0
    """Written by the host, read by the guest's users."""
    GUEST = 1
    """Written by the guest's users, read by the host."""
    AUTO = 2
    """What the guest's service says of its system."""
    AUTO_EXTERNAL = 3
    """What the host's service says of itself."""


class ValueType(IntEnum):
    """REG_*."""

    SZ = 1
    EXPAND_SZ = 2
    DWORD = 4
    QWORD = 11


@dataclass(frozen=True, slots=True)
class Pair:
    """``struct hv_kvp_exchg_msg_value``, 2,572 bytes: a key and its value."""

    key: str
    value: str | int = ""
    type: ValueType = ValueType.SZ

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<III512s2048s")

    def pack(self) -> bytes:
        """Encode; raises ValueError for what does not fit."""
        key = utf16(self.key, KEY_UNITS, "the key")
        if self.type in (ValueType.SZ, ValueType.EXPAND_SZ):
            value = utf16(str(self.value), VALUE_UNITS, "the value")
            size = _text_size(str(self.value))
        else:
            size = 4 if self.type is ValueType.DWORD else 8
            try:
                value = int(self.value).to_bytes(size, "little")
            except OverflowError as error:
                raise ValueError(f"{self.value} is no {self.type.name}") from error
        data: bytes = self.LAYOUT.pack(self.type, _text_size(self.key), size, key, value)
        return data

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Decode 2,572 bytes; raises :class:`MalformedIc`."""
        number, key_size, size, key, value = cls.LAYOUT.unpack_from(data)
        if key_size > KEY_UNITS * 2 or size > VALUE_UNITS * 2:
            raise MalformedIc(f"a pair with {key_size} bytes of key and {size} of value")
        try:
            kind = ValueType(number)
        except ValueError as error:
            raise MalformedIc(f"a value of type {number}") from error
        found: str | int
        match kind:
            case ValueType.SZ | ValueType.EXPAND_SZ:
                found = from_utf16(value[:size])
            case ValueType.DWORD:
                found = int.from_bytes(value[:4], "little")
            case ValueType.QWORD:
                found = int.from_bytes(value[:8], "little")
        return cls(from_utf16(key[:key_size]), found, kind)


@dataclass(frozen=True, slots=True)
class KeyMessage:
    """GET (2,576 bytes), SET (2,576 bytes) and DELETE (520 bytes) of one pair."""

    op: KvpOp
    pool: Pool
    pair: Pair

    DELETE: ClassVar[struct.Struct] = struct.Struct("<I512s")
    SIZE: ClassVar[int] = _HEAD.size + Pair.LAYOUT.size

    def pack(self) -> bytes:
        """Encode; raises ValueError."""
        head = _HEAD.pack(self.op, self.pool)
        if self.op is KvpOp.DELETE:
            key = utf16(self.pair.key, KEY_UNITS, "the key")
            return head + self.DELETE.pack(_text_size(self.pair.key), key)
        return head + self.pair.pack()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode the answer to a GET, at least ``SIZE`` bytes; raises :class:`MalformedIc`."""
        op, pool = _head(body)
        return cls(op, pool, Pair.parse(body[_HEAD.size :]))


@dataclass(frozen=True, slots=True)
class EnumerateMessage:
    """ENUMERATE, 2,580 bytes: the pair with this index, counted from 0."""

    pool: Pool
    index: int
    pair: Pair = Pair("")

    INDEX: ClassVar[struct.Struct] = struct.Struct("<I")
    SIZE: ClassVar[int] = _HEAD.size + INDEX.size + Pair.LAYOUT.size

    def pack(self) -> bytes:
        """Encode; raises ValueError."""
        head = _HEAD.pack(KvpOp.ENUMERATE, self.pool)
        return head + self.INDEX.pack(self.index) + self.pair.pack()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least ``SIZE`` bytes; raises :class:`MalformedIc`."""
        op, pool = _head(body)
        if op is not KvpOp.ENUMERATE:
            raise MalformedIc(f"{op.name} answers an enumeration")
        (index,) = cls.INDEX.unpack_from(body, _HEAD.size)
        return cls(pool, index, Pair.parse(body[_HEAD.size + cls.INDEX.size :]))


@dataclass(frozen=True, slots=True)
class IpMessage:
    """GET_IP and SET_IP (``struct hv_kvp_ip_msg``), 7,428 bytes, from version 4.0.

    Lists of addresses are texts with ``;`` between; ``family`` has bit 0 for IPv4, 1 for IPv6.
    """

    op: KvpOp
    adapter: str
    family: int = 0
    dhcp: bool = False
    addresses: str = ""
    subnets: str = ""
    gateways: str = ""
    dns: str = ""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BB256sBB2048s2048s1024s2048s")

    def pack(self) -> bytes:
        """Encode; raises ValueError."""
        return self.LAYOUT.pack(
            self.op,
            0,
            utf16(self.adapter, 128, "the adapter"),
            self.family,
            self.dhcp,
            utf16(self.addresses, 1024, "the addresses"),
            utf16(self.subnets, 1024, "the subnets"),
            utf16(self.gateways, 512, "the gateways"),
            utf16(self.dns, 1024, "the DNS servers"),
        )

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 7,428 bytes; raises :class:`MalformedIc`."""
        op, _, adapter, family, dhcp, *lists = cls.LAYOUT.unpack_from(body)
        if op not in (KvpOp.GET_IP, KvpOp.SET_IP):
            raise MalformedIc(f"operation {op} answers a question for addresses")
        return cls(
            KvpOp(op),
            from_utf16(adapter),
            family,
            bool(dhcp),
            *(from_utf16(each) for each in lists),
        )


def _text_size(text: str) -> int:
    return len((text + "\0").encode("utf-16-le"))


def _head(body: bytes) -> tuple[KvpOp, Pool]:
    op, pool = _HEAD.unpack_from(body)
    try:
        return KvpOp(op), Pool(pool)
    except ValueError as error:
        raise MalformedIc(f"operation {op} on pool {pool}") from error
