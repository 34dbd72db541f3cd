# SPDX-License-Identifier: MIT
"""The table of channels: by id it finds what it holds by key, and nothing else."""

from __future__ import annotations

import uuid

import pytest

from emulator.bus.channel import Channel, ChannelTable
from emulator.bus.effects import Offer, OfferKey


def channel(number: int) -> Channel:
    return Channel(Offer(OfferKey(uuid.UUID(int=1), uuid.UUID(int=number), 0)), number)


def test_a_channel_is_found_by_id_as_long_as_it_is_in_the_table() -> None:
    table = ChannelTable()
    one, two = channel(1), channel(2)
    table[one.offer.key] = one
    table[two.offer.key] = two
    assert table.with_id(1) is one
    assert table.with_id(2) is two
    assert table.pop(one.offer.key) is one
    assert table.with_id(1) is None
    assert table.with_id(2) is two
    table.clear()
    assert table.with_id(2) is None


def test_what_is_not_there_cannot_be_removed() -> None:
    table = ChannelTable()
    with pytest.raises(KeyError):
        del table[channel(1).offer.key]
