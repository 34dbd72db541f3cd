# SPDX-License-Identifier: MIT
"""What a fuzz run does, as data: an episode is a list of actions, and a line of a record.

Everything random is decided when an episode is made. Playing one asks for no random number, so that
a record replays with the same bytes in the same order; only QEMU's own timing differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

StopAnswer = Literal["honest", "never", "twice", "huge", "give up", "close"]
SaveAnswer = Literal[
    "honest",
    "empty",
    "never",
    "no result",
    "partial",
    "refuse",
    "refuse in garbage",
    "bad status",
    "reserved",
    "long text",
    "short text",
    "bad crc",
    "more than written",
    "less than written",
    "over the limit",
    "close",
]
LoadAnswer = Literal["honest", "never", "no result", "refuse", "bad status", "close"]
Command = Literal["stop", "cont", "system_reset", "migrate", "savevm", "loadvm"]


class Connect(msgspec.Struct, tag="connect", frozen=True):
    """Take QEMU's next connection; leave the one before. ``ready`` answers as a good backend."""

    ready: bool = True
    features: int = 1


class Send(msgspec.Struct, tag="send", frozen=True):
    """Send bytes (hex) in pieces; ``fds`` go with the first byte of piece ``fds_at``.

    ``epoch_at`` is where the epoch of the last RESET, plus ``epoch_plus``, replaces four bytes.
    """

    pieces: tuple[str, ...]
    fds: tuple[str, ...] = ()
    fds_at: int = 0
    epoch_at: int | None = None
    epoch_plus: int = 0
    times: int = 1


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """Send one good request; unless QEMU dropped it, its answer has to be one of ``statuses``."""

    kind: int
    body: str
    fds: tuple[str, ...] = ()
    statuses: tuple[int, ...] = (0,)
    times: int = 1
    step: int = 0
    """Added to the first word of the body each time."""


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Wait until QEMU has closed the connection, for this reason."""

    reason: str


class Served(msgspec.Struct, tag="served", frozen=True):
    """QEMU has to have taken what was sent so far, and to answer one more request."""

    kinds: tuple[int, ...] = ()


class Read(msgspec.Struct, tag="read", frozen=True):
    """Read what QEMU sends, or stop doing so."""

    on: bool


class Flood(msgspec.Struct, tag="flood", frozen=True):
    """Send these bytes (hex) again and again, until all are sent or QEMU takes no more."""

    data: str
    times: int


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """How to answer from now on."""

    stop: StopAnswer = "honest"
    save: SaveAnswer = "honest"
    load: LoadAnswer = "honest"
    reset: bool = True
    credit: bool = True


class Fire(msgspec.Struct, tag="fire", frozen=True):
    """Write to the eventfds that were sent, also to those of connections that are gone."""

    which: int
    times: int


class Close(msgspec.Struct, tag="close", frozen=True):
    """Close the connection, or one half of it."""

    how: Literal["close", "shutdown"] = "close"


class Storm(msgspec.Struct, tag="storm", frozen=True):
    """Take connections one after the other; send each these bytes (hex), and close it."""

    times: int
    data: str


class Order(msgspec.Struct, tag="order", frozen=True):
    """Give QEMU a QMP command; ``failure`` says why it has to fail, if it has to."""

    command: Command
    failure: str = ""


class Reported(msgspec.Struct, tag="reported", frozen=True):
    """QEMU's log has to tell of this failure since the episode began."""

    failure: str


class Limit(msgspec.Struct, tag="limit", frozen=True):
    """Let QEMU open this many descriptors more than it has; None takes the limit away."""

    spare: int | None


class Tick(msgspec.Struct, tag="tick", frozen=True):
    """The guest has to run on, whatever the backend is doing; the machine has to be running."""


Action = (
    Connect
    | Send
    | Ask
    | Refused
    | Served
    | Read
    | Flood
    | Answer
    | Fire
    | Close
    | Storm
    | Order
    | Reported
    | Limit
    | Tick
)


class Episode(msgspec.Struct, frozen=True):
    """One conversation, from the first connection to the last."""

    number: int
    name: str
    actions: tuple[Action, ...]


def write_episode(file: Path, episode: Episode) -> None:
    """Append an episode to the record of a run, before it is played."""
    with file.open("ab") as record:
        record.write(msgspec.json.encode(episode) + b"\n")


def read_episodes(file: Path) -> list[Episode]:
    """Return the episodes of a record; raises OSError, or ValueError if it is not one."""
    return [
        msgspec.json.decode(line, type=Episode) for line in file.read_bytes().splitlines() if line
    ]
