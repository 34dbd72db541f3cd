# SPDX-License-Identifier: MIT
"""Key-value pair exchange: the host reads and writes the pools of pairs that the guest keeps.

Linux: drivers/hv/hv_kvp.c hands each request to a daemon (hv_kvp_daemon); without one it does not
even answer the negotiation. A request that the daemon does not answer in 5 s fails.
"""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, Final

from emulator.devices.base import Command
from emulator.devices.ic.base import Answer, IcDevice, IcError, Request
from emulator.devices.ic.kvp_layout import (
    EnumerateMessage,
    IpMessage,
    KeyMessage,
    KvpOp,
    Pair,
    Pool,
    ValueType,
)
from emulator.devices.ic.layout import (
    IcStatus,
    IcType,
    IcVersion,
    MalformedIc,
    status_name,
)

PATIENCE: Final = 30.0
"""Seconds that the guest has for one request."""
MAX_PAIRS: Final = 4096
"""Pairs of one pool that are listed: the guest decides when a list ends."""

_NO_SUCH: Final = (IcStatus.NO_MORE_ITEMS, IcStatus.NOT_FOUND)


class KvpDevice(IcDevice):
    """The data exchange service."""

    kind: ClassVar[str] = "kvp"
    interface = uuid.UUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")
    instance = uuid.UUID("242ff919-07db-4180-9c2e-b86cb68c8c55")
    ic_type = IcType.KVP
    versions = (IcVersion(5, 0), IcVersion(4, 0), IcVersion(3, 0))

    def save_service(self) -> bytes:
        """Return nothing: what is in flight is the shared part's, the pairs are the guest's."""
        return b""

    def restore_service(self, data: bytes) -> None:
        """Take nothing."""

    def commands(self) -> dict[str, Command]:
        """``get``, ``set``, ``delete``, ``list``, ``ip``, ``set_ip``, ``negotiated``, ``status``.

        ``pool`` is one of ``Pool`` in lower case: ``external`` (the default of ``set`` and
        ``delete``), ``guest`` (of ``get`` and ``list``) or ``auto``.
        """
        return {
            "get": self._get,
            "set": self._set,
            "delete": self._delete,
            "list": self._list,
            "ip": self._ip,
            "set_ip": self._set_ip,
            "negotiated": self.negotiated,
            "status": self._status,
        }

    def answered(self, request: Request, answer: Answer) -> None:
        """See that an answer is one to what was asked, while that can still be held against it."""
        if answer.status != IcStatus.OK:
            return
        match KvpOp(request.body[0]):
            case KvpOp.GET:
                KeyMessage.parse(answer.body)
            case KvpOp.ENUMERATE:
                found = EnumerateMessage.parse(answer.body).index
                asked = EnumerateMessage.parse(request.body).index
                if found != asked:
                    raise MalformedIc(f"pair {found} answers the question for pair {asked}")
            case KvpOp.GET_IP:
                IpMessage.parse(answer.body)
            case KvpOp.SET | KvpOp.DELETE | KvpOp.SET_IP:
                pass

    async def _request(self, what: str, body: bytes, size: int = 0) -> Answer:
        return await self.ask(Request(what, body, size), PATIENCE)

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.about()

    async def _get(self, arguments: dict[str, Any]) -> Any:
        pool, key = _pool(arguments, Pool.GUEST), _text(arguments, "key")
        body = KeyMessage(KvpOp.GET, pool, Pair(key)).pack()
        answer = await self._request(f"get {key}", body, KeyMessage.SIZE)
        _check(answer, f"there is no {key} in pool {pool.name.lower()}")
        value = KeyMessage.parse(answer.body).pair.value
        if value == "":
            # Linux's kernel does not tell its daemon how long a value may be, and the daemon
            # copies none: an empty answer says only that the key is there.
            value = (await self._pairs(pool)).get(key, "")
        return value

    async def _set(self, arguments: dict[str, Any]) -> None:
        pool, key = _pool(arguments, Pool.EXTERNAL), _text(arguments, "key")
        value: Any = arguments.get("value", "")
        try:
            kind = ValueType[str(arguments.get("type", "sz")).upper()]
        except KeyError as error:
            names = ", ".join(each.name.lower() for each in ValueType)
            raise IcError(f"unknown type {error.args[0].lower()}; there are: {names}") from error
        body = KeyMessage(KvpOp.SET, pool, Pair(key, value, kind)).pack()
        _check(await self._request(f"set {key}", body), f"pool {pool.name.lower()}")

    async def _delete(self, arguments: dict[str, Any]) -> None:
        pool, key = _pool(arguments, Pool.EXTERNAL), _text(arguments, "key")
        body = KeyMessage(KvpOp.DELETE, pool, Pair(key)).pack()
        answer = await self._request(f"delete {key}", body)
        _check(answer, f"there is no {key} in pool {pool.name.lower()}")

    async def _list(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self._pairs(_pool(arguments, Pool.GUEST))

    async def _pairs(self, pool: Pool) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for index in range(MAX_PAIRS):
            body = EnumerateMessage(pool, index).pack()
            what = f"list {pool.name.lower()} {index}"
            answer = await self._request(what, body, EnumerateMessage.SIZE)
            if answer.status in _NO_SUCH:
                return pairs
            _check(answer, what)
            pair = EnumerateMessage.parse(answer.body).pair
            pairs[pair.key] = pair.value
        raise IcError(f"pool {pool.name.lower()} has more than {MAX_PAIRS} pairs")

    async def _ip(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return all addresses, or with ``mac`` what one adapter is set to."""
        mac = arguments.get("mac")
        if mac is None:
            pairs = await self._pairs(Pool.AUTO)
            return {
                family: _split(pairs.get(f"NetworkAddress{name}", ""))
                for family, name in (("ipv4", "IPv4"), ("ipv6", "IPv6"))
            }
        self._require_ip()
        # Linux's kernel hands the family on to the daemon, which answers for both.
        body = IpMessage(KvpOp.GET_IP, str(mac), family=3).pack()
        answer = await self._request(f"addresses of {mac}", body, IpMessage.LAYOUT.size)
        _check(answer, f"the guest has no adapter {mac}")
        found = IpMessage.parse(answer.body)
        return {
            "dhcp": found.dhcp,
            "addresses": _split(found.addresses),
            "subnets": _split(found.subnets),
            "gateways": _split(found.gateways),
            "dns": _split(found.dns),
        }

    async def _set_ip(self, arguments: dict[str, Any]) -> None:
        self._require_ip()
        lists = {
            name: ";".join(map(str, arguments.get(name, ())))
            for name in ("addresses", "subnets", "gateways", "dns")
        }
        family = 1 if "." in lists["addresses"] else 0
        family |= 2 if ":" in lists["addresses"] else 0
        mac, dhcp = _text(arguments, "mac"), bool(arguments.get("dhcp"))
        body = IpMessage(KvpOp.SET_IP, mac, family, dhcp, **lists).pack()
        _check(await self._request(f"set addresses of {mac}", body), f"adapter {mac}")

    def _require_ip(self) -> None:
        self.require_ready()
        assert self.version is not None
        if self.version < (4, 0):
            raise IcError(f"the guest speaks version {self.version}; addresses came with 4.0")


def _pool(arguments: dict[str, Any], default: Pool) -> Pool:
    name = str(arguments.get("pool") or default.name)
    try:
        return Pool[name.upper().replace("-", "_")]
    except KeyError as error:
        names = ", ".join(each.name.lower() for each in Pool)
        raise IcError(f"unknown pool {name}; there are: {names}") from error


def _text(arguments: dict[str, Any], name: str) -> str:
    text = str(arguments.get(name, ""))
    if not text:
        raise IcError(f"{name} is missing")
    return text


def _check(answer: Answer, missing: str) -> None:
    if answer.status in _NO_SUCH:
        raise IcError(missing)
    if answer.status != IcStatus.OK:
        raise IcError(f"the guest refused: {missing}: {status_name(answer.status)}")


def _split(text: Any) -> list[str]:
    return [each for each in str(text).split(";") if each]
