# SPDX-License-Identifier: MIT
"""GUIDs on the wire: the only place that knows their byte order.

data1, data2 and data3 are little-endian, data4 is bytes (Windows GUID, Linux ``guid_t``).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

GUID_SIZE: Final = 16


def guid_to_wire(guid: UUID) -> bytes:
    """Return the 16 bytes of ``guid``."""
    return guid.bytes_le


def guid_from_wire(data: bytes) -> UUID:
    """Return the GUID in 16 bytes; raises ValueError for any other size."""
    return UUID(bytes_le=data)
