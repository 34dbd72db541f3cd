# SPDX-License-Identifier: MIT
"""Files to guest memory and back without a copy: preadv and pwritev on slices of guest RAM.

The calls take at most IOV_MAX pieces and may transfer less than was asked for; here a transfer goes
on until all of it is done. They block, as the calls do: what must not, calls them in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

__all__ = ["ShortFile", "read_into", "write_from"]

_MOST: Final = os.sysconf("SC_IOV_MAX")


class ShortFile(Exception):
    """A file ended before ``missing`` bytes that were to be read from it."""

    def __init__(self, offset: int, missing: int) -> None:
        """Say where."""
        super().__init__(f"the file ends at byte {offset}, {missing} bytes too early")
        self.offset = offset
        self.missing = missing


def read_into(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
    """Fill the pieces, in order, from byte ``offset`` of a file; return how many bytes that was.

    Raises :class:`ShortFile` if the file ends before, with what there is in place; OSError.
    """

    def more(batch: Sequence[memoryview], position: int) -> int:
        done = os.preadv(fd, batch, position)
        if not done:
            raise ShortFile(position, sum(piece.nbytes for piece in pieces) - (position - offset))
        return done

    return _transfer(more, pieces, offset)


def write_from(fd: int, pieces: Sequence[memoryview], offset: int, flags: int = 0) -> int:
    """Write the pieces, in order, to byte ``offset`` of a file; return how many bytes that was.

    ``flags`` are those of pwritev2(2), RWF_DSYNC for a write that is to be on stable storage. What
    the guest changes in its memory meanwhile is written as it was or as it is. Raises OSError.
    """

    def more(batch: Sequence[memoryview], position: int) -> int:
        return os.pwritev(fd, batch, position, flags)

    return _transfer(more, pieces, offset)


def _transfer(
    more: Callable[[Sequence[memoryview], int], int], pieces: Sequence[memoryview], offset: int
) -> int:
    position = offset
    for batch in _batches(pieces):
        left = batch
        while left:
            done = more(left, position)
            position += done
            left = _after(left, done)
    return position - offset


def _batches(pieces: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    # Without empty ones: of those alone a call transfers nothing, which is how a file ends.
    filled = [piece for piece in pieces if piece.nbytes]
    for start in range(0, len(filled), _MOST):
        yield filled[start : start + _MOST]


def _after(pieces: Sequence[memoryview], done: int) -> Sequence[memoryview]:
    """Return what is left of the pieces after their first ``done`` bytes."""
    for index, piece in enumerate(pieces):
        if done < piece.nbytes:
            return [piece[done:], *pieces[index + 1 :]]
        done -= piece.nbytes
    return []
