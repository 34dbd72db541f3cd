# SPDX-License-Identifier: MIT
"""What is in flight on the probe's data channel: taken down at a save, checked off after it.

The kinds are those of the KMCL reference's packet object page: the host's packets queued or in
the ring, and the guest's requests and completions on their way. Each transaction is known by its
sequence number, so that its fate in the next process can be told one by one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from emulator.devices.probe.ledger import GuestLedger


class Kind(StrEnum):
    """Kinds of packets in flight."""

    REQUEST_UNREAD = "guest request, unread in ring"
    REQUEST_HELD = "guest request, held by device"
    QUEUED_WAIT = "host request, queued"
    QUEUED_NOTIFY = "host notify, queued"
    IN_RING = "host request, unanswered"
    COMPLETION_UNREAD = "guest completion, unread in ring"


class Flight(msgspec.Struct):
    """Sequence numbers in flight at a save, by kind, and what has become of each since."""

    seqs: dict[Kind, list[int]] = msgspec.field(default_factory=lambda: {kind: [] for kind in Kind})
    seen: dict[Kind, dict[int, int]] = msgspec.field(
        default_factory=lambda: {kind: {} for kind in Kind}
    )

    def counts(self) -> dict[str, int]:
        """Return how many there are of each kind."""
        return {kind.value: len(self.seqs[kind]) for kind in Kind}

    def complete(self) -> bool:
        """Whether there is at least one of every kind."""
        return all(self.seqs[kind] for kind in Kind)

    def request_answered(self, seq: int) -> None:
        """Note that the device answered a guest request."""
        self._note(seq, Kind.REQUEST_UNREAD, Kind.REQUEST_HELD)

    def packet_completed(self, seq: int) -> None:
        """Note that a host packet was completed: by the guest, or by its entry into the ring."""
        self._note(seq, Kind.QUEUED_WAIT, Kind.QUEUED_NOTIFY, Kind.IN_RING, Kind.COMPLETION_UNREAD)

    def _note(self, seq: int, *kinds: Kind) -> None:
        for kind in kinds:
            if seq in self.seen[kind]:
                self.seen[kind][seq] += 1

    def restored(self) -> None:
        """Begin to check off, in the process that restored."""
        self.seen = {kind: dict.fromkeys(self.seqs[kind], 0) for kind in Kind}
        # Held requests were answered when the channel was paused for the save; their answers
        # were still queued. Whether the guest got each once is for the guest's ledger to say.
        self.seen[Kind.REQUEST_HELD] = dict.fromkeys(self.seqs[Kind.REQUEST_HELD], 1)

    def outcome(self, guest: GuestLedger) -> list[dict[str, Any]]:
        """Return one row a kind. What only the guest can see is taken from its ledger."""
        rows = []
        for kind in Kind:
            fates = self.seen[kind].values()
            lost = sum(1 for count in fates if count == 0)
            twice = sum(1 for count in fates if count > 1)
            disorder = 0
            match kind:
                case Kind.REQUEST_UNREAD | Kind.REQUEST_HELD:
                    twice += guest.unknown_answers
                    lost += guest.sent_in_band + guest.sent_gpa_direct - guest.answers
                case Kind.QUEUED_WAIT | Kind.QUEUED_NOTIFY:
                    lost += guest.lost
                    disorder += guest.twice
                case Kind.IN_RING | Kind.COMPLETION_UNREAD:
                    pass
            rows.append(
                {
                    "kind": kind.value,
                    "at_save": len(self.seqs[kind]),
                    "once": len(fates) - lost - twice,
                    "lost": lost,
                    "duplicated": twice,
                    "disorder": disorder,
                }
            )
        return rows
