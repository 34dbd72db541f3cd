# SPDX-License-Identifier: MIT
"""The life cycle of a KMCL server channel, as three small enums. The theory:

The header names six states (Disabled, Enabled, Started, Stopped, Paused, Active). They are
positions on two independent axes, and one consequence:

* **Connection**: is there a peer? Moved by Enable, the guest's open and close, and Disable.
* **Run**: does the VSP want traffic? Moved by Start and Pause, and by nothing else.
* **Queue**: is there traffic? It follows from the two: it is ON if and only if Connection is
  OPEN and Run is STARTED. Leaving ON takes time, because the VSP must complete what it holds:
  DRAINING.

The rules:

1. The queue goes up as EvtStarted, then sends and reads, then EvtPostStarted (T5). It goes down as
   EvtSuspend, then completions only, then OFF (T6). Nothing is written to or read from a ring
   while it is OFF, so whoever saves guest memory at that moment saves the truth.
2. EvtOpened comes before the first T5 of a connection, EvtClosed after its last drain (T8, T9).
3. Calls that move an axis are refused inside a state callback: the axis is being acted on at
   that moment. Outside of one they never wait; the "blocking" DDI calls take a callback.

===  ==========================  ==================  =========================================
 #   event                       from                effect
===  ==========================  ==================  =========================================
T1   ServerChannel()                                 DISABLED, STOPPED, OFF
T2   init_set_*                  DISABLED            configured; elsewhere INVALID_PARAMETER_1
T3   enable                      DISABLED            offered: ENABLED
T4   port_opened                 ENABLED             EvtOpened: OPEN, or back on failure
T5   start, or T4 when STARTED   OPEN and STARTED    EvtStarted, ON, EvtPostStarted, read
T6   pause                       ON                  EvtSuspend, DRAINING, OFF, ``done``
T6'  pause                       DISABLED            remembered: PAUSED
T7   start                       OPEN and PAUSED     as T5
T8   port_closed                 OPEN                CLOSING: as T6 if ON; outgoing packets are
                                                     retired; EvtClosed; ENABLED, ``done``
T9   disable                     any                 as T8 if OPEN; revoked: DISABLED, ``done``
T10  (clients only: the host rescinds)
T11  cleanup                     DISABLED            CLEANED_UP
===  ==========================  ==================  =========================================

Restore adds no state: a channel whose provider calls ``port_restored`` is OPEN without EvtOpened,
takes its stream while STOPPED or PAUSED, and starts by T5 (Windows' behaviour here is not
documented).
"""

from __future__ import annotations

from enum import Enum


class Connection(Enum):
    """Whether there is a peer."""

    DISABLED = "disabled"
    """Not offered; the only state in which the channel can be configured."""
    ENABLED = "enabled"
    """Offered; the guest has not opened it, or has closed it again. Sends are queued."""
    OPEN = "open"
    """The guest has opened it and EvtOpened has succeeded, or it was restored open."""
    CLOSING = "closing"
    """The peer closes or the VSP disables; the VSP still holds incoming packets."""
    REVOKING = "revoking"
    """EvtClosed is over; the provider is taking the offer back."""
    CLEANED_UP = "cleaned up"
    """VmbChannelCleanup was called; of no further use."""


class Run(Enum):
    """Whether the VSP wants traffic."""

    STOPPED = "stopped"
    """Not started since it was enabled. A server channel waits for VmbChannelStart."""
    STARTED = "started"
    """Started: traffic flows whenever there is a peer."""
    PAUSED = "paused"
    """Paused, perhaps before it was enabled; VmbChannelStart ends it."""


class Queue(Enum):
    """Whether there is traffic; follows from :class:`Connection` and :class:`Run`."""

    OFF = "off"
    """Neither ring is touched."""
    STARTING = "starting"
    """EvtStarted is running: sends are queued, nothing is read."""
    ON = "on"
    """Packets flow both ways."""
    DRAINING = "draining"
    """EvtSuspend was called: completions are still written, nothing is read."""


class OutgoingState(Enum):
    """Where an outgoing packet object is. QUEUED and IN_RING are "in use" for a save."""

    ALLOCATED = "allocated"
    """The VSP's: not yet sent, or completed and reusable."""
    QUEUED = "queued"
    """Sent; waits for room in the host-to-guest ring, or for the channel to run."""
    IN_RING = "in ring"
    """In the ring or read by the guest, whose completion is awaited."""
    FREED = "freed"
    """Given back with VmbPacketFree."""


class Restore(Enum):
    """How far VmbChannelRestoreFromBuffer has come."""

    NONE = "none"
    """Nothing was restored since the channel was enabled."""
    PARTIAL = "partial"
    """More chunks are expected; the channel cannot be started."""
    COMPLETE = "complete"
    """The last chunk was taken."""
    FAILED = "failed"
    """A chunk was refused; the channel can only be disabled."""
