# SPDX-License-Identifier: MIT
"""A guest that is frozen while something is done, and thawed after it, come what may.

For whoever saves a machine with its disks. ``call`` is that of a machine's control connection.
Should this process end within, the device thaws the guest when the lease is over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from emulator.devices.ic.vss import LEASE


@asynccontextmanager
async def frozen(
    call: Callable[..., Awaitable[Any]], device: str = "vss", lease: float = LEASE
) -> AsyncIterator[None]:
    """Freeze the guest's file systems for at most ``lease`` seconds, and thaw them at the end.

    Raises what ``call`` raises if the guest cannot be frozen; or thawed, which is an error even if
    all went well within: its lease may have ended before, and what was done is not consistent.
    """
    await call(f"{device}.freeze", lease=lease)
    try:
        yield
    except BaseException:
        await call(f"{device}.thaw")
        raise
    done = await call(f"{device}.thaw")
    if not done["was_frozen"]:
        raise TimeoutError(f"the guest was thawed before the end: it was frozen for {lease:g} s")
