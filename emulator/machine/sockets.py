# SPDX-License-Identifier: MIT
"""Listening UNIX sockets: made by a machine's owner for its children, or by the backend itself."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path


def listen(path: Path, mode: int | None = None) -> socket.socket:
    """Bind a stream socket at ``path``, replacing a stale one; raises OSError.

    ``mode`` are the permissions of the path; by default the umask says. Who may write may connect.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket", str(path))
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    if mode is not None:
        # On Linux the path gets the mode of the socket, so it is never open to others, even at
        # first; the umask, which belongs to the whole process, need not be touched.
        os.fchmod(sock.fileno(), mode)
    sock.bind(str(path))
    sock.listen(8)
    return sock
