# SPDX-License-Identifier: MIT
"""Guest-physical memory, and views of scattered guest pages with whole, ordered access to words."""

from emulator.memory.codemap import CodeMap
from emulator.memory.guest import GpaError, GuestMemory, MemoryMapError, RamRegion
from emulator.memory.readonly import ReadOnlyMemory, ReadOnlyPageView
from emulator.memory.view import ATOMIC, IMPLEMENTATION, PageView, page_view

__all__ = [
    "ATOMIC",
    "IMPLEMENTATION",
    "CodeMap",
    "GpaError",
    "GuestMemory",
    "MemoryMapError",
    "PageView",
    "RamRegion",
    "ReadOnlyMemory",
    "ReadOnlyPageView",
    "page_view",
]
