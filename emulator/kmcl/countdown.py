# SPDX-License-Identifier: MIT
"""One ``done`` for several that are waited for: the DDI's blocking calls, without blocking."""

from __future__ import annotations

from collections.abc import Callable


def countdown(count: int, done: Callable[[], None]) -> Callable[[], None]:
    """Return what calls ``done`` when it has been called ``count`` times (at least 1)."""

    def one() -> None:
        nonlocal count
        count -= 1
        if count == 0:
            done()

    return one
