# SPDX-License-Identifier: MIT
"""Where the Wireshark dissector is, and the part of it that follows from ``emulator.wire``.

``vmbus.lua`` has its tables (messages with their fields, types, versions, rules) between two marks.
They are written by ``python -m emulator.trace.dissector``, so that each layout stays defined in one
place; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum, IntEnum
from pathlib import Path
from typing import Final

from emulator.trace import record
from emulator.trace.decode import HEX_FIELDS
from emulator.wire.message import Message, MessageStatus, MessageType
from emulator.wire.messages import TABLE
from emulator.wire.packet import PacketRule, PacketType
from emulator.wire.version import FeatureFlags, Version

PATH: Final = Path(__file__).with_name("vmbus.lua")
BEGIN: Final = "-- begin of what `python -m emulator.trace.dissector` writes\n"
END: Final = "-- end of what `python -m emulator.trace.dissector` writes\n"

_SIZES: Final = {"B": 1, "H": 2, "I": 4, "Q": 8}


def generated() -> str:
    """Return the tables, as they belong between the marks.

    Raises ValueError if two messages have a field of one name and different types.
    """
    lines: list[str] = []
    for name, kind in (
        ("KINDS", record.Kind),
        ("DIRECTIONS", record.Direction),
        ("EVENTS", record.Event),
        ("TYPES", MessageType),
        ("STATUSES", MessageStatus),
        ("PACKETS", PacketType),
    ):
        lines += _values(name, kind)
    lines += ["local VERSIONS = {"]
    lines += [f'  [{version.value:#010x}] = "{version}",' for version in Version]
    lines += ["}", "local FEATURES = {"]
    lines += [f'  {{{flag.value:#04x}, "{flag.name}"}},' for flag in FeatureFlags]
    lines += ["}", "local RULES = {"]
    lines += [f'  {rule.name} = "{rule.value}",' for rule in PacketRule]
    lines += ["}", "-- type, from guest, since, one of these features, least body, fields"]
    lines += ["local FORMS = {"]
    for form in TABLE:
        sender = "true" if form.FROM_GUEST else "false"
        lines.append(
            f"  {{{form.TYPE.value}, {sender}, {form.SINCE.value:#010x}, "
            f'{form.FEATURES.value:#04x}, {form.LAYOUT.size}, "{form.__name__}", [['
        )
        lines += [f"    {name}:{kind}@{offset}" for name, kind, offset in form_fields(form)]
        lines.append("  ]]},")
    lines.append("}")
    _check()
    return "\n".join(lines) + "\n"


def form_fields(form: type[Message]) -> Iterator[tuple[str, str, int]]:
    """Yield name, type and offset in the body of each field.

    Types: u and x with bits (x: people read it in hexadecimal), guid, b with bytes, and tail for
    all that follows.
    """
    names = [(item.name, item.type == "UUID") for item in fields(form)]
    position = index = 0
    for count, code in re.findall(r"(\d*)([xsBHIQ])", form.LAYOUT.format):
        if code == "x":
            position += int(count or 1)
            continue
        if code == "s":
            name, is_guid = names[index]
            yield name, "guid" if is_guid else f"b{count}", position
            position += int(count)
            index += 1
            continue
        for _ in range(int(count or 1)):
            name, _ = names[index]
            yield name, f"{'x' if name in HEX_FIELDS else 'u'}{8 * _SIZES[code]}", position
            position += _SIZES[code]
            index += 1
    if index < len(names):
        yield names[index][0], "tail", position


def _check() -> None:
    known: dict[str, str] = {}
    for form in TABLE:
        for name, kind, _ in form_fields(form):
            if known.setdefault(name, kind) != kind:
                raise ValueError(
                    f"{form.__name__}.{name} is {kind}, elsewhere {known[name]}: Wireshark has one "
                    "type for a name; rename the field, or give the dissector two"
                )


def _values(name: str, kind: type[IntEnum]) -> list[str]:
    def key(member: Enum) -> str:
        return f"{member.value:#x}" if member.value > 255 else str(member.value)

    return [f"local {name} = {{", *(f'  [{key(m)}] = "{m.name}",' for m in kind), "}"]


def rewritten(text: str) -> str:
    """Return the text of the dissector with its tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError("the marks are missing")
    return before + BEGIN + generated() + END + after


if __name__ == "__main__":
    PATH.write_text(rewritten(PATH.read_text()))
