# SPDX-License-Identifier: MIT
"""NTSTATUS values that KMCL and the devices' protocols put into calls and onto the wire.

Names are those of ``ntstatus.h`` without ``STATUS_``. Two traps are kept on purpose, because
callers of KMCL fall into them: BUFFER_OVERFLOW and MORE_PROCESSING_REQUIRED mean "go on" and are
not successes, PENDING means "not yet" and is one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

_ERROR_OR_WARNING: Final = 0x8000_0000


class NtStatus(IntEnum):
    """A 32-bit status code: severity in the two highest bits (MS-ERREF section 2.3)."""

    SUCCESS = 0x0000_0000
    PENDING = 0x0000_0103
    BUFFER_OVERFLOW = 0x8000_0005
    UNSUCCESSFUL = 0xC000_0001
    INVALID_PARAMETER = 0xC000_000D
    MORE_PROCESSING_REQUIRED = 0xC000_0016
    BUFFER_TOO_SMALL = 0xC000_0023
    DATA_ERROR = 0xC000_003E
    CRC_ERROR = 0xC000_003F
    REVISION_MISMATCH = 0xC000_0059
    INSUFFICIENT_RESOURCES = 0xC000_009A
    NOT_SUPPORTED = 0xC000_00BB
    INVALID_PARAMETER_1 = 0xC000_00EF
    INVALID_PARAMETER_2 = 0xC000_00F0
    INVALID_PARAMETER_3 = 0xC000_00F1
    INVALID_PARAMETER_4 = 0xC000_00F2
    CANCELLED = 0xC000_0120
    INVALID_DEVICE_STATE = 0xC000_0184
    INVALID_BUFFER_SIZE = 0xC000_0206
    DEVICE_REMOVED = 0xC000_02B6

    @property
    def is_success(self) -> bool:
        """NT_SUCCESS: the severity is success or informational."""
        return self < _ERROR_OR_WARNING
