# SPDX-License-Identifier: MIT
"""What a bus allows its guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulator.wire.version import Version

OLDEST_VERSION: Final = Version.V1
NEWEST_VERSION: Final = Version.COPPER


@dataclass(frozen=True, slots=True)
class BusConfig:
    """Limits of one bus.

    Versions limit what is negotiated. ``max_restored_version`` limits what a snapshot may have
    negotiated: a host that is rolled back can keep a guest running on a version that it would not
    offer any more.

    ``max_pages`` is what Hyper-V allows a guest to share: 1,280 MiB (Linux,
    Documentation/virt/hyperv/vmbus.rst). Linux has 1 to 4 GPADLs on a channel; the message that
    begins a GPADL cannot announce more than 8,190 pages.

    ``max_held_messages`` is how many of the host's messages wait while the guest has paused the
    connection; with more, what the guest sends is refused until it resumes.

    ``bit_pages`` is whether this host can change bits in a word that the guest changes at the same
    time (``emulator.memory.ATOMIC``). Without it there are no versions below 2.4 and no monitored
    notifications.

    Raises ValueError for a range of versions that this host does not speak.
    """

    min_version: Version = OLDEST_VERSION
    max_version: Version = NEWEST_VERSION
    max_restored_version: Version = NEWEST_VERSION
    max_gpadls_per_channel: int = 256
    max_pages: int = 1280 * 256
    max_held_messages: int = 1024
    bit_pages: bool = True

    def __post_init__(self) -> None:
        if not OLDEST_VERSION <= self.min_version <= self.max_version <= NEWEST_VERSION:
            raise ValueError(
                f"versions {self.min_version} to {self.max_version}: "
                f"this host speaks {OLDEST_VERSION} to {NEWEST_VERSION}"
            )
        if not self.min_version <= self.max_restored_version <= NEWEST_VERSION:
            raise ValueError(
                f"restored versions up to {self.max_restored_version}: "
                f"this host speaks {self.min_version} to {NEWEST_VERSION}"
            )
