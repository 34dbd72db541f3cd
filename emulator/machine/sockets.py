# SPDX-License-Identifier: MIT
"""Listening UNIX sockets: made by a machine's owner for its children, or by the backend itself."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path


def listen(path: Path) -> socket.socket:
    """Bind a stream socket at ``path``, replacing a stale one; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    sock.listen(8)
    return sock
