# SPDX-License-Identifier: MIT
"""Sockets that a service manager has made (sd_listen_fds(3)), and telling it that we are ready.

systemd makes the sockets, starts the program when somebody connects or at once, and keeps them when
it ends, so that QEMU can connect again while there is no backend.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from typing import Final

_FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""


class ActivationError(Exception):
    """What the service manager handed over cannot be used; the text says why."""


def inherited_sockets(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """Return name and socket of each that was handed to this process, in order.

    The variables are removed, because they are not for children; raises :class:`ActivationError`.
    """
    pid, count, names = (
        environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if not count or pid != str(os.getpid()):
        return []
    if not count.isdigit():
        raise ActivationError(f"LISTEN_FDS is {count!r}, not a number")
    named = names.split(":") if names else []
    found: list[tuple[str, socket.socket]] = []
    for index in range(int(count)):
        fd = _FIRST_FD + index
        name = named[index] if index < len(named) else ""
        found.append((name, unix_socket(fd, f"LISTEN_FDS: descriptor {fd}")))
    return found


def unix_socket(fd: int, what: str) -> socket.socket:
    """Return the UNIX stream socket ``fd``; raises :class:`ActivationError` if it is not one."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ActivationError(f"{what} is not a socket: {error.strerror}") from error
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        sock.detach()
        raise ActivationError(f"{what} is not a UNIX stream socket")
    sock.set_inheritable(False)
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether connections come to a socket; one that does not listen is a connection itself."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def notify(state: str) -> None:
    """Tell the service manager, if there is one that wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
