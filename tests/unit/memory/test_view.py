# SPDX-License-Identifier: MIT
"""Both implementations of the page view, against a plain bytearray and against another process."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.memory import PageView, ReadOnlyMemory, ReadOnlyPageView, _native
from emulator.memory._pure import PurePageView

ViewType = Callable[[Sequence[memoryview]], PageView]
# Not optional: a run of the tests that leaves the extension out would say nothing about the
# backend.
VIEW_TYPES: dict[str, ViewType] = {"native": _native.PageView, "pure": PurePageView}


@pytest.fixture(params=sorted(VIEW_TYPES))
def view_type(request: pytest.FixtureRequest) -> ViewType:
    return VIEW_TYPES[request.param]


def scattered(*pages: int) -> list[memoryview]:
    """Make segments of these many pages, with unused pages between them."""
    return [memoryview(bytearray(4096 * count + 4096))[: 4096 * count] for count in pages]


@pytest.mark.parametrize("name", sorted(VIEW_TYPES))
@given(
    segments=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    work=st.lists(
        st.tuples(
            st.sampled_from(["write", "store"]),
            st.floats(0, 1, exclude_max=True),
            st.binary(max_size=40)
            | st.integers(0, 9000).map(lambda n: bytes(i % 251 for i in range(n))),
        ),
        max_size=20,
    ),
)
def test_a_view_is_one_stretch_of_bytes(
    name: str, segments: list[int], work: list[tuple[str, float, bytes]]
) -> None:
    view = VIEW_TYPES[name](scattered(*segments))
    size = 4096 * sum(segments)
    plain = bytearray(size)
    assert len(view) == size
    for action, where, data in work:
        at = int(where * size)
        if action == "write":
            data = data[: size - at]
            view.write(at, data)
            plain[at : at + len(data)] = data
            assert view.read(at, len(data)) == data
        else:
            at &= ~3
            value = int.from_bytes(data[:4], "little")
            view.store_u32(at, value)
            plain[at : at + 4] = value.to_bytes(4, "little")
            assert view.load_u32(at) == value
        view.fence()
        at = int(where * size / 2)
        assert b"".join(view.slices(at, size - 2 * at)) == plain[at : size - at]
    assert view.read(0, size) == plain
    for first in range(sum(segments)):
        part = view.sub(4096 * first, size - 4096 * first)
        assert part.read(0, len(part)) == plain[4096 * first :]


def test_words_are_little_endian(view_type: ViewType) -> None:
    view = view_type(scattered(1, 1))
    view.store_u32(4096, 0x11223344)
    assert view.read(4096, 4) == b"\x44\x33\x22\x11"
    view.write(4092, b"\xff\xff\xff\xff")
    assert view.load_u32(4092) == 0xFFFFFFFF


def test_bits_are_set_and_taken(view_type: ViewType) -> None:
    view = view_type(scattered(1, 1))
    assert view.or_u32(4096, 0x80000001) == 0
    assert view.or_u32(4096, 0x10) == 0x80000001
    assert view.read(4096, 4) == b"\x11\x00\x00\x80"
    assert view.swap_u32(4096, 7) == 0x80000011
    assert view.load_u32(4096) == 7
    assert view.load_u32(4092) == view.load_u32(4100) == 0


def test_slices_and_parts_are_the_memory_itself(view_type: ViewType) -> None:
    view = view_type(scattered(1, 2))
    pieces = view.slices(4090, 12)
    assert [len(piece) for piece in pieces] == [6, 6]
    pieces[1][:] = b"second"
    assert view.read(4096, 6) == b"second"
    view.sub(4096, 4096).write(0, b"SECOND")
    assert bytes(pieces[1]) == b"SECOND"
    assert view.slices(5, 0) == []
    assert len(view.sub(4096, 0)) == 0


def test_a_view_of_nothing(view_type: ViewType) -> None:
    view = view_type([])
    assert (len(view), view.read(0, 0), view.slices(0, 0)) == (0, b"", [])
    view.write(0, b"")
    with pytest.raises(ValueError, match="not within"):
        view.load_u32(0)


def test_data_may_be_a_slice_of_the_same_memory(view_type: ViewType) -> None:
    view = view_type(scattered(1))
    view.write(0, bytes(range(100)))
    view.write(10, view.slices(0, 50)[0])
    assert view.read(0, 70) == bytes((*range(10), *range(50), *range(60, 70)))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 8193), (8192, 1), (8193, 0), (-1, 1), (-1, 0), (0, -1), (1, 2**62)]
)
def test_bytes_outside_the_view(view_type: ViewType, offset: int, length: int) -> None:
    view = view_type(scattered(1, 1))
    for method in (view.read, view.slices, view.sub):
        with pytest.raises(ValueError, match=r"not within|not whole"):
            method(offset, length)
    if 0 <= length < 10_000:
        with pytest.raises(ValueError, match="not within"):
            view.write(offset, bytes(length))
    assert view.read(0, 8192) == bytes(8192)


@pytest.mark.parametrize("offset", [-4, 8192, 8189, 2**62, 1, 2, 4095])
def test_words_outside_the_view_or_not_aligned(view_type: ViewType, offset: int) -> None:
    view = view_type(scattered(1, 1))
    with pytest.raises(ValueError, match=r"not within|not aligned"):
        view.load_u32(offset)
    for change in (view.store_u32, view.swap_u32, view.or_u32):
        with pytest.raises(ValueError, match=r"not within|not aligned"):
            change(offset, 1)


@pytest.mark.parametrize("value", [-1, 2**32, 2**40])
def test_values_of_more_than_32_bits(view_type: ViewType, value: int) -> None:
    view = view_type(scattered(1))
    for change in (view.store_u32, view.swap_u32, view.or_u32):
        with pytest.raises(ValueError, match="32 bits"):
            change(0, value)
    assert view.load_u32(0) == 0


@pytest.mark.parametrize("size", [0, 1, 4095, 4100])
def test_segments_are_whole_pages(view_type: ViewType, size: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        view_type([memoryview(bytearray(size))])


def test_segments_are_bytes(view_type: ViewType) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        view_type([memoryview(bytearray(4096)).cast("I")])


def test_segments_are_writable(view_type: ViewType) -> None:
    with pytest.raises(BufferError):
        view_type([memoryview(bytes(4096))])


def test_parts_are_whole_pages(view_type: ViewType) -> None:
    view = view_type(scattered(2))
    for offset, length in ((8, 4096), (0, 100)):
        with pytest.raises(ValueError, match="not whole pages"):
            view.sub(offset, length)


def test_wrong_types_are_type_errors() -> None:
    view = _native.PageView(scattered(1))
    with pytest.raises(TypeError):
        view.read("0", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        view.write(0, "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        view.read(0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        _native.PageView(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _native.PageView([5])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _native.PageView(segments=[])  # type: ignore[call-arg]
    with pytest.raises(OverflowError):
        view.read(2**70, 1)


def test_a_view_keeps_its_memory_and_gives_it_back(view_type: ViewType) -> None:
    mapping = mmap.mmap(-1, 8192)
    view = view_type([memoryview(mapping)])
    part = view.sub(4096, 4096)
    del view
    gc.collect()
    with pytest.raises(BufferError):
        mapping.close()
    part.store_u32(0, 7)
    assert mapping[4096] == 7
    del part
    gc.collect()
    mapping.close()


def test_a_refused_segment_is_given_back(view_type: ViewType) -> None:
    good, bad = bytearray(4096), bytearray(100)
    with pytest.raises(ValueError, match="whole pages"):
        view_type([memoryview(good), memoryview(bad)])
    gc.collect()
    good.clear()  # BufferError if anything still holds it
    bad.clear()


WRITER = """
import mmap, os, sys
from emulator.memory import _native
from emulator.memory._pure import PurePageView
view_type = {"native": _native.PageView, "pure": PurePageView}[sys.argv[1]]
view = view_type([memoryview(mmap.mmap(int(sys.argv[2]), 4096))])
while view.load_u32(64) == 0:
    for value in (0, 0xFFFFFFFF, 0x12345678):
        view.store_u32(0, value)
"""


def test_words_are_never_torn_between_processes(view_type: ViewType, checkout: Path) -> None:
    """Another process stores three values in turn; a load gives one of them, never a mixture."""
    name = next(name for name, known in VIEW_TYPES.items() if known is view_type)
    fd = os.memfd_create("words")
    os.ftruncate(fd, 4096)
    view = view_type([memoryview(mmap.mmap(fd, 4096))])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(fd)], pass_fds=[fd], cwd=checkout
    ) as writer:
        os.close(fd)
        try:
            seen: set[int] = set()
            changes = loads = last = 0
            # Bounded by loads if the two do run at once, by the life of the writer if they never
            # do.
            while (loads < 300_000 or changes < 100) and writer.poll() is None:
                for _ in range(10_000):
                    value = view.load_u32(0)
                    if value != last:
                        seen.add(value)
                        changes += 1
                        last = value
                loads += 10_000
        finally:
            view.store_u32(64, 1)
    assert writer.returncode == 0
    assert changes >= 100
    assert seen == {0, 0xFFFFFFFF, 0x12345678}


def test_words_are_never_torn_between_threads() -> None:
    """The same between threads of one process, with the interpreter switching all the time."""
    view = _native.PageView(scattered(1))
    stop = threading.Event()
    started = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for value in (0, 0xFFFFFFFF):
                view.store_u32(0, value)
            started.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=write)
    try:
        thread.start()
        assert started.wait(60)
        seen = {view.load_u32(0) for _ in range(50_000)}
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert seen <= {0, 0xFFFFFFFF}


SETTER = """
import mmap, sys
from emulator.memory import _native
view = _native.PageView([memoryview(mmap.mmap(int(sys.argv[1]), 4096))])
for number in range(100_000):
    bit = 1 << number % 16
    while view.or_u32(0, bit) & bit:  # taken by nobody yet
        pass
"""


def test_no_bit_is_lost_between_processes(checkout: Path) -> None:
    """One process sets 100,000 bits, each when it is clear; another takes them, and sets its own
    in the same word. Each is taken once.
    """
    fd = os.memfd_create("words")
    os.ftruncate(fd, 4096)
    view = _native.PageView([memoryview(mmap.mmap(fd, 4096))])
    ours = theirs = sent = 0
    with subprocess.Popen(
        [sys.executable, "-c", SETTER, str(fd)], pass_fds=[fd], cwd=checkout
    ) as setter:
        os.close(fd)
        while True:
            ended = setter.poll() is not None
            sent += 1
            assert not view.or_u32(0, 1 << 31) >> 31
            taken = view.swap_u32(0, 0)
            ours += taken >> 31
            theirs += (taken & 0xFFFF).bit_count()
            if ended:
                break
    assert setter.returncode == 0
    assert (ours, theirs) == (sent, 100_000)


@pytest.mark.parametrize(("pure", "expected"), [("1", "pure"), ("0", "native"), ("", "native")])
def test_the_environment_chooses(checkout: Path, pure: str, expected: str) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import emulator.memory as m\n"
            "print(m.IMPLEMENTATION, type(m.page_view([memoryview(bytearray(4096))])).__module__)",
        ],
        env={**os.environ, "VMBUS_PURE_PYTHON": pure},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [expected, f"emulator.memory._{expected}"]


def test_without_the_extension_only_x86_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulator.memory import view as module

    monkeypatch.delenv("VMBUS_PURE_PYTHON", raising=False)
    monkeypatch.setitem(sys.modules, "emulator.memory._native", None)
    monkeypatch.delattr("emulator.memory._native")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert module._choose() == ("pure", PurePageView)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ImportError, match="build_ext"):
        module._choose()


def test_a_view_for_reading_shows_the_memory_and_refuses_to_write_it(view_type: ViewType) -> None:
    view = view_type(scattered(1, 2))
    view.write(4090, b"twelve bytes")
    reading: PageView = ReadOnlyPageView(view, "GPADL 0xe1e10")
    part = reading.sub(4096, 8192)
    refused: list[Callable[[], object]] = [
        lambda: reading.write(4, b"x"),
        lambda: reading.store_u32(4, 1),
        lambda: reading.swap_u32(4, 1),
        lambda: reading.or_u32(4, 1),
        lambda: part.write(4, b"x"),
    ]
    before = view.read(0, len(view))
    for write in refused:
        with pytest.raises(ReadOnlyMemory, match=r"GPADL 0xe1e10 is mapped for reading only.* 0x4"):
            write()
    pieces = reading.slices(4090, 12)
    with pytest.raises(TypeError, match="read-only"):
        pieces[0][:1] = b"x"
    assert view.read(0, len(view)) == before
    reading.fence()
    assert (len(reading), len(part)) == (12288, 8192)
    assert reading.read(4090, 12) == b"".join(pieces) == b"twelve bytes"
    assert reading.load_u32(4096) == view.load_u32(4096) != 0
    with pytest.raises(ValueError, match="not within"):
        reading.read(12288, 1)
