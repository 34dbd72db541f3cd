# SPDX-License-Identifier: MIT
"""vmbus-user: the protocol between a patched QEMU and this VMBus host (docs/vmbus-user.md).

Beside floor 3: knows sockets, descriptors and epochs, nothing of channels. :class:`Session`
serves one connection and calls a :class:`SessionHandler`; :mod:`emulator.link.protocol` is the
codec.
"""

from emulator.link.protocol import Feature, ProtocolError, Region, Status
from emulator.link.session import Post, Session, SessionHandler, StateRefused

__all__ = [
    "Feature",
    "Post",
    "ProtocolError",
    "Region",
    "Session",
    "SessionHandler",
    "StateRefused",
    "Status",
]
