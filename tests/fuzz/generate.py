# SPDX-License-Identifier: MIT
"""Makes episodes: conversations that follow docs/vmbus-user.md, and that break it in many ways.

An episode is drawn from a deck of cards that is shuffled again when it is empty, so that each kind
of conversation comes up early and as often as the others. What a card leaves open is random.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Final, get_args

from tests.fuzz import actions as a
from tests.fuzz import protocol as p
from tests.fuzz.descriptors import BAD, EVENTFD, GOOD, MAKERS

Card = Callable[[random.Random, int], list[a.Action]]
"""Makes the actions of an episode from random numbers and the number of vCPUs."""

_CARDS: Final[list[Card]] = []

_EDGES: Final = (0, 1, 2, 3, 4, 15, 16, 239, 240, 241, 2047, 2048, 0x2001, 0xFFFFFF, 0x1000000)
_HUGE: Final = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _card(make: Card) -> Card:
    _CARDS.append(make)
    return make


def episodes(seed: int, vcpus: int) -> Iterator[a.Episode]:
    """Yield episodes without end; the same seed and number of vCPUs give the same ones."""
    deck: list[Card] = []
    number = 0
    while True:
        if not deck:
            deck = list(_CARDS)
            random.Random(f"{seed} deck {number}").shuffle(deck)
        card = deck.pop()
        rng = random.Random(f"{seed} episode {number}")
        yield a.Episode(number, card.__name__, tuple(card(rng, vcpus)))
        number += 1


# Pieces.


def _send(data: bytes, fds: tuple[str, ...] = (), **rest: int) -> a.Send:
    return a.Send((data.hex(),), fds, **rest)


def _split(rng: random.Random, data: bytes, fds: tuple[str, ...]) -> a.Send:
    """Send ``data`` cut at odd bytes; the descriptors come with one of the pieces."""
    cuts = sorted(rng.sample(range(1, len(data)), min(rng.randint(1, 6), len(data) - 1)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return a.Send(tuple(piece.hex() for piece in pieces), fds, rng.randrange(len(pieces)))


def _word(rng: random.Random) -> int:
    return rng.choice((*_EDGES, *_EDGES, *_HUGE, rng.getrandbits(32)))


def _flag(rng: random.Random) -> int:
    return rng.choice((0, 1, 63, 64, 2046, 2047, rng.randrange(2048)))


def _body(rng: random.Random, kind: int, vcpus: int) -> bytes:
    """Return a body that is in order, and mostly means something."""
    match kind:
        case p.HELLO_REPLY:
            return p.hello_reply()[16:]
        case p.POST_MESSAGE:
            payload = rng.randbytes(rng.choice((0, 1, 8, 16, 239, 240, rng.randint(0, 240))))
            vp_index = rng.choice((*range(vcpus), vcpus, 0xFFFFFFFF))
            sint = rng.choice((2, 2, 2, 0, 15, 16, rng.randrange(16)))
            return p.post(vp_index, sint, rng.choice((1, 1, 0x80000010)), payload)[16:]
        case p.ADD_INTERRUPT:
            vp_index = rng.choice((*range(vcpus), vcpus, 0xFFFFFFFF))
            sint = rng.choice((2, 2, 2, 0, 15, 16))
            return p.words(rng.randrange(6), vp_index, sint, rng.choice((_flag(rng), 2048)))
        case p.DEL_INTERRUPT:
            return p.words(rng.randrange(6))
        case p.ADD_DOORBELL | p.DEL_DOORBELL:
            return p.words(rng.choice((0x2001, 0x2002, 1, 4, 0, 0xFFFFFF, 0x1000000, 0xFFFFFFFF)))
        case p.MEM_TABLE_DONE | p.GUEST_MESSAGE_DONE:
            return p.words(0)
        case _:
            return p.words(_word(rng))


_REQUESTS: Final = (
    p.POST_MESSAGE,
    p.POST_MESSAGE,
    p.ADD_DOORBELL,
    p.DEL_DOORBELL,
    p.ADD_INTERRUPT,
    p.ADD_INTERRUPT,
    p.DEL_INTERRUPT,
    p.GUEST_MESSAGE_DONE,
)


def _request(rng: random.Random, vcpus: int) -> tuple[bytes, tuple[str, ...]]:
    kind = rng.choice(_REQUESTS)
    fds = (rng.choice(GOOD),) if p.BACKEND[kind].fds else ()
    return p.frame(kind, _body(rng, kind, vcpus), cookie=rng.getrandbits(16)), fds


def _busy(rng: random.Random, vcpus: int, count: int) -> list[a.Action]:
    """Return good requests, whole or in pieces, with writes to the eventfds between them."""
    actions: list[a.Action] = []
    for _ in range(count):
        data, fds = _request(rng, vcpus)
        actions.append(_split(rng, data, fds) if rng.random() < 0.4 else _send(data, fds))
        if rng.random() < 0.4:
            actions.append(a.Fire(rng.randrange(64), rng.choice((1, 3, 64))))
    return actions


def _registrations() -> list[a.Action]:
    return [
        a.Ask(p.ADD_INTERRUPT, p.words(1, 0, 2, 1).hex(), (EVENTFD,)),
        a.Ask(p.ADD_INTERRUPT, p.words(2, 0, 2, 2).hex(), (EVENTFD,)),
        a.Ask(p.ADD_DOORBELL, p.words(0x2001).hex(), (EVENTFD,)),
    ]


# What the device has to refuse, each with its reason.


def _refused(reason: str) -> Callable[[Callable[[random.Random], list[a.Action]]], Card]:
    def decorate(make: Callable[[random.Random], list[a.Action]]) -> Card:
        def card(rng: random.Random, vcpus: int) -> list[a.Action]:
            first = _busy_but_safe(rng)
            return [a.Connect(), *first, *make(rng), a.Refused(reason)]

        card.__name__ = make.__name__.strip("_")
        return _card(card)

    return decorate


def _busy_but_safe(rng: random.Random) -> list[a.Action]:
    return _registrations() if rng.random() < 0.5 else []


def _maybe_split(rng: random.Random, data: bytes, fds: tuple[str, ...] = ()) -> a.Send:
    return _split(rng, data, fds) if rng.random() < 0.5 else _send(data, fds)


@_refused("version")
def _another_version(rng: random.Random) -> list[a.Action]:
    flags = rng.choice((0, 2, 3, 0x80, 0xFF, 0x102))
    return [_maybe_split(rng, p.frame(p.RESET_DONE, p.words(1), flags=flags))]


@_refused("flags")
def _reserved_flags(rng: random.Random) -> list[a.Action]:
    flags = 1 | 1 << rng.randrange(8, 32)
    return [_maybe_split(rng, p.frame(p.DEL_DOORBELL, p.words(1), flags=flags))]


@_refused("type")
def _unknown_type(rng: random.Random) -> list[a.Action]:
    kind = rng.choice((0, *p.FRONTEND, 12, 63, 73, 127, 255, 256 + 64, 0x40000000, 0xFFFFFFFF))
    return [_maybe_split(rng, p.frame(kind, p.words(1)))]


@_refused("size")
def _wrong_size(rng: random.Random) -> list[a.Action]:
    kind, shape = rng.choice(list(p.BACKEND.items()))
    sizes = [*range(shape.smallest), *range(shape.largest + 1, 300), 65_536, 65_537, *_HUGE]
    return [_maybe_split(rng, p.frame(kind, size=rng.choice(sizes)))]


@_refused("fds")
def _wrong_number_of_descriptors(rng: random.Random) -> list[a.Action]:
    kind, shape = rng.choice(list(p.BACKEND.items()))
    count = rng.choice([n for n in (0, 1, 2, 3, 15, 16, 17, 40, 253) if n != shape.fds])
    fds = tuple(rng.choice(list(MAKERS)) for _ in range(count))
    return [_maybe_split(rng, p.frame(kind, bytes(shape.smallest)), fds)]


@_refused("fds")
def _descriptors_on_two_pieces_of_one_message(rng: random.Random) -> list[a.Action]:
    data = p.frame(p.ADD_DOORBELL, p.words(0x2001))
    cut = rng.randrange(1, len(data))
    return [_send(data[:cut], (EVENTFD,)), _send(data[cut:], (EVENTFD,))]


@_refused("second HELLO_REPLY")
def _second_hello_reply(rng: random.Random) -> list[a.Action]:
    return [_maybe_split(rng, p.hello_reply(features=rng.randrange(2)))]


@_refused("second MEM_TABLE_DONE")
def _second_mem_table_done(rng: random.Random) -> list[a.Action]:
    return [_maybe_split(rng, p.frame(p.MEM_TABLE_DONE, p.words(rng.randrange(2))))]


def _bad_handshake(reason: str, data: Callable[[random.Random], bytes], name: str) -> None:
    def card(rng: random.Random, vcpus: int) -> list[a.Action]:
        return [a.Connect(ready=False), _maybe_split(rng, data(rng)), a.Refused(reason)]

    card.__name__ = name
    _card(card)


_bad_handshake(
    "HELLO_REPLY version",
    lambda rng: p.hello_reply(version=rng.choice((0, 2, *_HUGE))),
    "hello_of_another_version",
)
_bad_handshake(
    "HELLO_REPLY features",
    lambda rng: (
        p.hello_reply(reserved=1 + rng.getrandbits(8))
        if rng.random() < 0.5
        else p.hello_reply(features=1 << rng.randrange(1, 64))
    ),
    "features_that_were_not_offered",
)
_bad_handshake(
    "MEM_TABLE status",
    lambda rng: p.frame(p.MEM_TABLE_DONE, p.words(rng.choice((1, 2, *_HUGE)))),
    "memory_that_was_not_mapped",
)


@_refused("credits")
def _credits_that_were_not_used(rng: random.Random) -> list[a.Action]:
    # More than the window of guest messages, which a guest may be using.
    count = rng.choice((129, 1_000, *_HUGE))
    return [_maybe_split(rng, p.frame(p.GUEST_MESSAGE_DONE, p.words(count)))]


@_refused("post size")
def _post_of_another_size(rng: random.Random) -> list[a.Action]:
    size = rng.randrange(241)
    says = rng.choice([n for n in (0, 1, 240, 241, *_HUGE, size + 1) if n != size])
    return [_maybe_split(rng, p.post(0, 2, 1, bytes(size), says=says))]


@_refused("post type")
def _post_of_an_empty_slot(rng: random.Random) -> list[a.Action]:
    return [_maybe_split(rng, p.post(rng.choice((0, 99)), 2, 0, bytes(rng.randrange(241))))]


@_refused("post window")
def _posts_beyond_the_window(rng: random.Random) -> list[a.Action]:
    # While the machine is stopped none gets a status.
    return [
        a.Order("stop"),
        a.Send((p.post(0, 2, 1, bytes(8)).hex(),), times=p.POST_WINDOW + 1),
    ]


@_refused("not an eventfd")
def _descriptor_of_another_kind(rng: random.Random) -> list[a.Action]:
    kind = rng.choice((p.ADD_DOORBELL, p.ADD_INTERRUPT))
    body = p.words(0x2001) if kind == p.ADD_DOORBELL else p.words(1, 0, 2, 1)
    return [_maybe_split(rng, p.frame(kind, body), (rng.choice(BAD),))]


@_refused("fds")
def _no_room_for_descriptors_in_qemu(rng: random.Random) -> list[a.Action]:
    # More than one: QEMU may be closing what an earlier connection had.
    frames = [p.frame(p.ADD_DOORBELL, p.words(0x3000 + index)) for index in range(64)]
    # Stopped: firmware may be about to reset the machine once more, and what comes between a reset
    # and its answer is dropped, descriptors and all.
    quiet: list[a.Action] = [a.Order("stop"), a.Served()]
    return [*quiet, a.Limit(0), *(_send(data, (EVENTFD,)) for data in frames)]


# What the device has to answer.


@_card
def each_request(rng: random.Random, vcpus: int) -> list[a.Action]:
    flag = _flag(rng)
    connection = rng.choice((0x2001, 0xFFFFFF, rng.randrange(5, 1 << 24)))
    vp_index = rng.randrange(vcpus)
    return [
        a.Connect(),
        a.Ask(p.ADD_INTERRUPT, p.words(7, vp_index, 2, flag).hex(), (EVENTFD,)),
        a.Fire(0, 3),
        a.Ask(p.ADD_INTERRUPT, p.words(7, 0, 2, flag).hex(), (rng.choice(GOOD),)),
        a.Fire(0, 3),
        a.Ask(p.DEL_INTERRUPT, p.words(7).hex()),
        a.Ask(p.DEL_INTERRUPT, p.words(7).hex(), statuses=(3,)),
        a.Ask(p.ADD_INTERRUPT, p.words(1, vcpus, 2, 1).hex(), (EVENTFD,), statuses=(2,)),
        a.Ask(p.ADD_INTERRUPT, p.words(1, 0, 16, 1).hex(), (EVENTFD,), statuses=(2,)),
        a.Ask(p.ADD_INTERRUPT, p.words(1, 0, 2, 2048).hex(), (EVENTFD,), statuses=(2,)),
        a.Ask(p.ADD_DOORBELL, p.words(connection).hex(), (rng.choice(GOOD),)),
        a.Ask(p.ADD_DOORBELL, p.words(connection).hex(), (EVENTFD,), statuses=(3,)),
        a.Ask(p.ADD_DOORBELL, p.words(1 << 24).hex(), (EVENTFD,), statuses=(2,)),
        a.Ask(p.DEL_DOORBELL, p.words(connection).hex()),
        a.Ask(p.DEL_DOORBELL, p.words(connection).hex(), statuses=(3,)),
        a.Ask(p.POST_MESSAGE, p.words(_HUGE[rng.randrange(3)], 2, 1, 0).hex(), statuses=(2,)),
        a.Ask(p.POST_MESSAGE, p.words(0, 16, 1, 0).hex(), statuses=(2,)),
        _send(p.frame(p.GUEST_MESSAGE_DONE, p.words(0))),
        a.Served((p.GUEST_MESSAGE_DONE,)),
    ]


@_card
def registrations_without_room(rng: random.Random, vcpus: int) -> list[a.Action]:
    kind = rng.choice((p.ADD_DOORBELL, p.ADD_INTERRUPT))
    first = 0x10000 if kind == p.ADD_DOORBELL else 0
    body = p.words(first) if kind == p.ADD_DOORBELL else p.words(first, 0, 2, 1)
    beyond = p.words(first + p.MAX_REGISTRATIONS) + body[4:]
    return [
        a.Connect(),
        # Under a guest that makes nothing but hypercalls each of them waits for QEMU's big lock.
        a.Order("stop"),
        a.Ask(kind, body.hex(), (EVENTFD,), times=p.MAX_REGISTRATIONS, step=1),
        a.Ask(kind, beyond.hex(), (EVENTFD,), statuses=(4,)),
        a.Order("cont"),
        a.Fire(0, 64),
        a.Order(rng.choice(("system_reset", "stop", "migrate"))),
    ]


@_card
def posts_to_a_synic_that_is_off(rng: random.Random, vcpus: int) -> list[a.Action]:
    # SINT 9 is masked, and has no page before the guest has enabled its SynIC.
    vp_index = rng.randrange(vcpus)
    body = p.words(vp_index, 9, 1, 4) + b"late"
    return [
        a.Connect(),
        a.Order("system_reset"),
        a.Served(),
        a.Ask(p.POST_MESSAGE, body.hex(), statuses=(0, 1)),
    ]


@_card
def posts_dropped_by_a_reset(rng: random.Random, vcpus: int) -> list[a.Action]:
    data = p.post(rng.randrange(vcpus), 2, 1, bytes(8), cookie=rng.getrandbits(16))
    return [
        a.Connect(),
        a.Order("stop"),
        a.Send((data.hex(),), times=rng.randint(1, p.POST_WINDOW)),
        a.Served((p.POST_MESSAGE,)),
        a.Order("system_reset"),
        a.Order("cont"),
        a.Served(),
    ]


@_card
def posts_and_interrupts(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [a.Connect(), *_busy(rng, vcpus, 60)]


# Stop, save, load.


@_card
def stop_without_an_answer(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(),
        *_registrations(),
        a.Answer(stop="never"),
        a.Order("stop"),
        a.Reported("stop timeout"),
        a.Order("migrate", failure="save: not stopped"),
        a.Fire(0, 3),
        a.Order("cont"),
        a.Tick(),
        a.Answer(),
        a.Order("stop"),
        a.Order("migrate"),
    ]


@_card
def stop_given_up(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(),
        *_registrations(),
        a.Answer(stop="give up"),
        a.Order("stop"),
        a.Reported("stop given up"),
        a.Order("migrate", failure="save: not stopped"),
        a.Order("cont"),
        a.Answer(),
        a.Order("stop"),
        a.Order("migrate"),
    ]


@_card
def save_while_running(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [a.Connect(), a.Order("migrate", failure="save: running"), a.Served()]


@_card
def save_without_the_feature(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(features=0),
        a.Order("stop"),
        a.Order("migrate", failure="save: no feature"),
        a.Served(),
    ]


@_card
def save_without_a_backend(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(ready=False),
        a.Order("stop"),
        a.Order("migrate", failure="save: no backend"),
        a.Close(),
        a.Reported("gone"),
    ]


_SAVE_FAILURES: Final[dict[a.SaveAnswer, str]] = {
    "never": "state: timeout",
    "no result": "state: no result",
    "partial": "state: timeout",
    "refuse": "state: refused",
    "refuse in garbage": "state: refused",
    "bad status": "state: malformed",
    "reserved": "state: malformed",
    "long text": "state: malformed",
    "short text": "state: no result",
    "bad crc": "save: CRC",
    "more than written": "save: size",
    "less than written": "save: size",
    "over the limit": "save: too large",
}


def _bad_save(answer: a.SaveAnswer, failure: str) -> None:
    def card(rng: random.Random, vcpus: int) -> list[a.Action]:
        actions: list[a.Action] = [a.Connect(), *_busy_but_safe(rng), a.Answer(save=answer)]
        if rng.random() < 0.3:
            return [*actions, a.Order("savevm"), a.Served()]
        again: list[a.Action] = [a.Answer(), a.Order("migrate")] if rng.random() < 0.5 else []
        return [*actions, a.Order("stop"), a.Order("migrate", failure), *again, a.Served()]

    card.__name__ = f"save: {answer}"
    _card(card)


for _answer, _failure in _SAVE_FAILURES.items():
    _bad_save(_answer, _failure)


@_card
def load_in_every_way(rng: random.Random, vcpus: int) -> list[a.Action]:
    how: a.LoadAnswer = rng.choice([x for x in get_args(a.LoadAnswer) if x != "close"])
    failure = "" if how == "honest" else "load: failed"
    return [
        a.Connect(),
        *_registrations(),
        a.Answer(save=rng.choice(("honest", "empty"))),
        a.Order("savevm"),
        *_busy(rng, vcpus, 10),
        a.Served(),
        a.Answer(load=how),
        a.Order("loadvm", failure),
    ]


@_card
def closed_when_asked(rng: random.Random, vcpus: int) -> list[a.Action]:
    what = rng.choice(("stop", "save", "load"))
    if what == "load":
        save = a.Order("savevm")
        return [a.Connect(), save, a.Answer(load="close"), a.Order("loadvm", "load: failed")]
    if what == "save":
        return [a.Connect(), a.Order("stop"), a.Answer(save="close"), a.Order("migrate")]
    report = a.Reported("stop given up")
    return [a.Connect(), a.Answer(stop="close"), a.Order("stop"), report, a.Order("cont")]


@_card
def many_stops(rng: random.Random, vcpus: int) -> list[a.Action]:
    actions: list[a.Action] = [a.Connect(), *_registrations()]
    for _ in range(rng.randint(3, 10)):
        command: a.Command = rng.choice(("stop", "cont", "stop", "cont", "system_reset"))
        answer = a.Answer(stop=rng.choice(("honest", "honest", "twice", "huge")))
        actions += [answer, *_busy(rng, vcpus, 3), a.Order(command), a.Fire(0, 3)]
    return actions


@_card
def everything_with_commands(rng: random.Random, vcpus: int) -> list[a.Action]:
    commands: tuple[a.Command, ...] = get_args(a.Command)
    actions: list[a.Action] = [a.Connect()]
    for _ in range(rng.randint(2, 6)):
        stop: a.StopAnswer = rng.choice(get_args(a.StopAnswer)) if rng.random() < 0.2 else "honest"
        save: a.SaveAnswer = rng.choice(get_args(a.SaveAnswer)) if rng.random() < 0.2 else "honest"
        load: a.LoadAnswer = rng.choice(get_args(a.LoadAnswer)) if rng.random() < 0.2 else "honest"
        answer = a.Answer(stop, save, load, rng.random() < 0.8, rng.random() < 0.8)
        actions += [answer, *_busy(rng, vcpus, 8), a.Order(rng.choice(commands))]
    return actions


# Erratic connections.


@_card
def wrong_epochs(rng: random.Random, vcpus: int) -> list[a.Action]:
    done = p.frame(p.RESET_DONE, p.words(0))
    post = p.post(0, 2, 1, bytes(4))
    wrong = rng.choice((-1, 1, 2, 1 << 31))
    return [
        a.Connect(ready=False),
        _send(p.hello_reply() + p.frame(p.MEM_TABLE_DONE, p.words(0))),
        _send(done, epoch_at=16, epoch_plus=wrong),
        # Dropped, and so are the descriptors with them, until the right one comes.
        _send(post, times=3),
        _send(p.frame(p.ADD_INTERRUPT, p.words(1, 0, 2, 1)), (rng.choice(list(MAKERS)),)),
        _send(p.frame(p.ADD_DOORBELL, p.words(0x2001)), (rng.choice(list(MAKERS)),), times=5),
        _send(done, epoch_at=16),
        # Too late to say anything.
        _send(done, epoch_at=16, epoch_plus=wrong, times=rng.randrange(3)),
        a.Served((p.RESET_DONE,)),
    ]


@_card
def no_answer_to_a_reset(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(),
        *_registrations(),
        a.Answer(reset=False),
        a.Order("system_reset"),
        *_busy(rng, vcpus, 5),
        a.Order("stop"),
        a.Order("migrate", failure="save: no backend"),
        a.Order("cont"),
        # Firmware resets the machine once more; where that comes later, it wants its own answer.
        a.Answer(),
        _send(p.frame(p.RESET_DONE, p.words(0)), epoch_at=16),
        a.Served((p.RESET_DONE,)),
    ]


@_card
def closed_in_mid_message(rng: random.Random, vcpus: int) -> list[a.Action]:
    data, fds = _request(rng, vcpus)
    cut = rng.randrange(1, len(data))
    ends: list[a.Action] = [a.Close(), a.Close("shutdown"), a.Order("stop")]
    return [a.Connect(), *_busy(rng, vcpus, 3), _send(data[:cut], fds), rng.choice(ends)]


@_card
def closed_before_it_is_ready(rng: random.Random, vcpus: int) -> list[a.Action]:
    handshake = p.hello_reply() + p.frame(p.MEM_TABLE_DONE, p.words(0))
    ends: list[a.Action] = [a.Close(), a.Close("shutdown"), a.Order("stop")]
    return [
        a.Connect(ready=False),
        _send(handshake[: rng.randrange(1, len(handshake))]),
        rng.choice(ends),
    ]


@_card
def reconnect_storm(rng: random.Random, vcpus: int) -> list[a.Action]:
    data = rng.choice((b"", b"\0", p.hello_reply(), rng.randbytes(40)))
    return [a.Connect(), *_registrations(), a.Storm(rng.randint(5, 25), data.hex())]


@_card
def flood_without_reading(rng: random.Random, vcpus: int) -> list[a.Action]:
    kind = rng.choice((p.DEL_INTERRUPT, p.DEL_DOORBELL, p.POST_MESSAGE, p.GUEST_MESSAGE_DONE))
    body = p.words(0xFFFFFFFF, 2, 1, 0) if kind == p.POST_MESSAGE else p.words(0)
    if kind in (p.DEL_INTERRUPT, p.DEL_DOORBELL):
        body = p.words(0xFFFF)
    commands: tuple[a.Command, ...] = ("stop", "system_reset", "savevm", "cont")
    ends: list[list[a.Action]] = [[a.Read(True), a.Served((kind,))], [a.Close()], []]
    return [
        a.Connect(),
        *_registrations(),
        a.Read(False),
        a.Flood(p.frame(kind, body).hex(), 60_000),
        a.Tick(),
        a.Fire(0, 10),
        a.Order(rng.choice(commands)),
        a.Order("cont"),
        a.Tick(),
        *rng.choice(ends),
    ]


@_card
def stall(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(),
        *_registrations(),
        a.Read(False),
        a.Fire(0, 3),
        a.Tick(),
        a.Order("stop"),
        a.Reported("stop timeout"),
        a.Order("system_reset"),
        a.Order("cont"),
        a.Order("system_reset"),
        a.Read(True),
        a.Served(),
    ]


@_card
def eventfds_of_a_connection_that_is_gone(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(),
        *_registrations(),
        a.Fire(0, 3),
        a.Close(),
        a.Fire(0, 3),
        a.Connect(),
        a.Fire(0, 3),
        *_registrations(),
        a.Order("system_reset"),
        a.Fire(0, 64),
    ]


# Mutations.


@_card
def mutated(rng: random.Random, vcpus: int) -> list[a.Action]:
    """Good requests of which some have a bit turned, a word changed, a piece cut or doubled."""
    actions: list[a.Action] = [a.Connect(ready=rng.random() < 0.9)]
    for _ in range(rng.randint(3, 30)):
        data, fds = _request(rng, vcpus)
        if rng.random() < 0.5:
            data = _mutate(rng, data)
        if rng.random() < 0.1:
            fds = tuple(rng.choice(list(MAKERS)) for _ in range(rng.randrange(4)))
        if len(data) > 1:
            actions.append(_maybe_split(rng, data, fds))
    return actions


_card(mutated)
_card(mutated)


@_card
def garbage(rng: random.Random, vcpus: int) -> list[a.Action]:
    return [
        a.Connect(ready=rng.random() < 0.5),
        _maybe_split(rng, rng.randbytes(rng.choice((2, 16, 17, 300, 70_000)))),
        a.Order(rng.choice(("stop", "cont", "system_reset"))),
    ]


def _mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        match rng.randrange(5):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if len(out) >= 4:
                struct.pack_into("<I", out, min(at & ~3, len(out) - 4), _word(rng))
            case 2:
                del out[at : at + rng.randint(1, 8)]
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                out += out[at:]
        if not out:
            return b"\0"
    return bytes(out)


CARDS: Final = len(_CARDS)
"""After so many episodes each kind has been played."""
