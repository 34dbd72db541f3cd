# SPDX-License-Identifier: MIT
"""How tables, sizes and durations look in all commands that show a running machine."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def console() -> Console:
    """Return a console whose lines programs can read as well: not highlighted, never wrapped."""
    found = Console(highlight=False, soft_wrap=True)
    # A pipe has 80 columns for rich, and would have its tables cut.
    found.width = max(found.width, 140)
    return found


def table(*columns: str, title: str = "") -> Table:
    """Return an empty table; a column whose name begins with ``>`` is of numbers."""
    shown = Table(
        title=escape(title) or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    shown.collapse_padding = True
    shown.pad_edge = False
    for column in columns:
        right = column.startswith(">")
        shown.add_column(
            column.removeprefix(">"), justify="right" if right else "left", no_wrap=True
        )
    return shown


def plain(text: str) -> str:
    """Return a text of a guest's or user's making so that it is shown, and does nothing else."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in text))


def size(count: int) -> str:
    """Return bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count //= 1024
    return f"{count} {unit}"


def duration(seconds: float) -> str:
    """Return a time span as a person reads it."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def power_us(power: int) -> str:
    """Return 2**power microseconds as a person reads it."""
    count = 1 << power
    if count < 1000:
        return f"{count} us"
    return f"{count / 1000:.3g} ms" if count < 1_000_000 else f"{count / 1e6:.3g} s"
