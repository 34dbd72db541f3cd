# SPDX-License-Identifier: MIT
"""The user's terminal as the guest's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Final

ESCAPE: Final = 0x1D
"""Ctrl-], which telnet(1) and virsh(1) use as well; nothing a guest needs is on it."""


def show(data: bytes) -> None:
    """Write what the guest printed to the user, as it came."""
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def attached(typed: Callable[[bytes], None], escaped: Callable[[], None]) -> Iterator[None]:
    """Hand over what the user types while in the context, key by key if it is a terminal.

    The key ``ESCAPE`` is not handed over but calls ``escaped``. The terminal is put back into its
    former mode at the end. Standard input that is no terminal is handed over as it is; its end is
    not the machine's.
    """
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()
    mode = termios.tcgetattr(stdin) if os.isatty(stdin) else None

    def readable() -> None:
        try:
            data = os.read(stdin, 4096)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(stdin)
            return
        if mode is not None and ESCAPE in data:
            data, _, rest = data.partition(bytes([ESCAPE]))
            escaped()
            data += rest
        if data:
            typed(data)

    watched = True
    try:
        loop.add_reader(stdin, readable)
    except (OSError, ValueError):
        # A file cannot be waited for (epoll refuses it): it is all there.
        watched = False
        readable()
    if mode is not None:
        tty.setraw(stdin)
    try:
        yield
    finally:
        if watched:
            loop.remove_reader(stdin)
        if mode is not None:
            termios.tcsetattr(stdin, termios.TCSADRAIN, mode)
