# SPDX-License-Identifier: MIT
"""Mode pages (SPC-4 section 7.5, SBC-3 section 6.5, MMC-6 section 7): MODE SENSE's data.

Nothing can be changed: MODE SELECT takes what is the case already and refuses the rest, and the
mask of changeable values is zero.
"""

from __future__ import annotations

from typing import Final

from emulator.devices.storage.scsi import CheckCondition, Op, Sense

ALL_PAGES: Final = 0x3F
ERROR_RECOVERY: Final = 0x01
CACHING: Final = 0x08
CONTROL: Final = 0x0A
POWER: Final = 0x1A
EXCEPTIONS: Final = 0x1C
CAPABILITIES: Final = 0x2A
"""MM capabilities and mechanical status, of a DVD drive."""

WRITE_PROTECT: Final = 0x80
DPO_FUA: Final = 0x10


def _page(code: int, body: bytes) -> bytes:
    return bytes((code, len(body))) + body


_COMMON: Final = {
    ERROR_RECOVERY: _page(ERROR_RECOVERY, bytes((0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0))),
    # QAM 1: the guest may not count on an order of what it has under way at one time.
    CONTROL: _page(CONTROL, bytes((0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0))),
    EXCEPTIONS: _page(EXCEPTIONS, bytes(10)),
}


def disk_pages(*, write_cache: bool) -> dict[int, bytes]:
    """Return the pages of a disk by code; ``write_cache`` says that it has to be flushed."""
    caching = bytes((0x04 if write_cache else 0,)) + bytes(17)
    return {**_COMMON, CACHING: _page(CACHING, caching)}


def dvd_pages() -> dict[int, bytes]:
    """Return the pages of a DVD drive by code: it reads CD and DVD, has a tray, writes nothing."""
    capabilities = bytes(
        (0x3B, 0, 0x71, 0x60, 0x29, 0, 0x02, 0xC2, 0, 2, 0, 0, 0x02, 0xC2)
    ) + bytes(6)
    return {
        **_COMMON,
        POWER: _page(POWER, bytes(10)),
        CAPABILITIES: _page(CAPABILITIES, capabilities),
    }


def sense(
    cdb: bytes, pages: dict[int, bytes], parameter: int, blocks: tuple[int, int] | None
) -> bytes:
    """Return the data of MODE SENSE, cut to its allocation length.

    ``parameter`` is the device-specific byte of the header; ``blocks`` the number of blocks and
    their size for the block descriptor, if there is one. Raises :class:`CheckCondition`.
    """
    control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if control == 3:
        raise CheckCondition(Sense.SAVING_NOT_SUPPORTED)
    if subpage not in (0, 0xFF):
        raise CheckCondition(Sense.INVALID_FIELD)
    if code == ALL_PAGES:
        found = [pages[each] for each in sorted(pages)]
    elif code in pages and not subpage:
        found = [pages[code]]
    else:
        raise CheckCondition(Sense.INVALID_FIELD)
    if control == 1:
        found = [page[:2] + bytes(len(page) - 2) for page in found]
    short = cdb[0] == Op.MODE_SENSE_6
    descriptor = b""
    if blocks is not None and not cdb[1] & 0x08:
        count, size = blocks
        known = min(count, 0xFFFFFFFF if not short else 0xFFFFFF)
        descriptor = known.to_bytes(4, "big") + size.to_bytes(4, "big")
    body = descriptor + b"".join(found)
    if short:
        data = bytes((3 + len(body), 0, parameter, len(descriptor))) + body
        return data[: cdb[4]]
    head = (6 + len(body)).to_bytes(2, "big") + bytes((0, parameter, 0, 0))
    return (head + len(descriptor).to_bytes(2, "big") + body)[: int.from_bytes(cdb[7:9], "big")]


def select(cdb: bytes, data: bytes, pages: dict[int, bytes]) -> None:
    """Take the data of MODE SELECT; raises :class:`CheckCondition` if they change anything."""
    if not data:
        return
    head = 4 if cdb[0] == Op.MODE_SELECT_6 else 8
    if len(data) < head:
        raise CheckCondition(Sense.PARAMETER_LENGTH)
    descriptors = data[3] if head == 4 else int.from_bytes(data[6:8], "big")
    position = head + descriptors
    while position < len(data):
        page = data[
            position : position + 2 + (data[position + 1] if position + 1 < len(data) else 0)
        ]
        known = pages.get(page[0] & 0x3F)
        if known is None or len(page) != len(known):
            raise CheckCondition(Sense.INVALID_PARAMETERS)
        if page[2:] != known[2:]:
            raise CheckCondition(Sense.INVALID_PARAMETERS)
        position += len(page)
