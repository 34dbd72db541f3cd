# SPDX-License-Identifier: MIT
"""The probe's two ledgers and their comparison (docs/probe.md section 5).

The host's ledger mirrors the guest's. Both count and both keep digests that do not depend on order,
so that a transaction lost, doubled or answered twice shows even when the counts happen to agree.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, Self

import msgspec

from emulator.devices.probe.protocol import LAYOUT_VERSION, MalformedProbe, mix

_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_WORDS = struct.Struct("<20Q")


@dataclass(frozen=True, slots=True)
class GuestLedger:
    """The guest's ledger, in the order of its 20 words."""

    version: int
    sent_in_band: int
    sent_gpa_direct: int
    sent_digest: int
    answers: int
    answered_digest: int
    unknown_answers: int
    bad_answers: int
    bad_external: int
    malformed: int
    host_requests: int
    host_notifies: int
    twice: int
    lost: int
    last_seq: int
    host_digest: int
    host_answered: int
    host_answered_digest: int
    bad_bodies: int
    owed: int

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode 160 bytes; raises :class:`MalformedProbe`."""
        if len(body) < _WORDS.size:
            raise MalformedProbe(f"a ledger of {len(body)} bytes is too short")
        ledger = cls(*_WORDS.unpack_from(body))
        if ledger.version != LAYOUT_VERSION:
            raise MalformedProbe(f"ledger version {ledger.version} is not {LAYOUT_VERSION}")
        return ledger

    def as_dict(self) -> dict[str, int]:
        """Return the words by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class HostLedger(msgspec.Struct):
    """The host's ledger; part of the device's saved state."""

    requests_in_band: int = 0
    requests_gpa_direct: int = 0
    requests_digest: int = 0
    next_request: int = 1
    requests_twice: int = 0
    requests_lost: int = 0
    bad_bodies: int = 0
    answered: int = 0
    answered_digest: int = 0
    sent_requests: int = 0
    sent_notifies: int = 0
    sent_digest: int = 0
    last_seq: int = 0
    completions: int = 0
    completions_digest: int = 0
    completions_unknown: int = 0
    bad_completions: int = 0

    def request_received(self, seq: int, *, gpa_direct: bool) -> None:
        """Count a guest request; they arrive in order."""
        if gpa_direct:
            self.requests_gpa_direct += 1
        else:
            self.requests_in_band += 1
        self.requests_digest = self.requests_digest + mix(seq) & _M64
        if seq < self.next_request:
            self.requests_twice += 1
            return
        self.requests_lost += seq - self.next_request
        self.next_request = seq + 1

    def request_answered(self, seq: int) -> None:
        """Count an answer given to the guest."""
        self.answered += 1
        self.answered_digest = self.answered_digest + mix(seq) & _M64

    def sent(self, *, wants_answer: bool) -> int:
        """Count a host packet; returns its sequence number."""
        self.last_seq += 1
        if wants_answer:
            self.sent_requests += 1
        else:
            self.sent_notifies += 1
        self.sent_digest = self.sent_digest + mix(self.last_seq) & _M64
        return self.last_seq

    def completed(self, seq: int) -> None:
        """Count the guest's answer to a host request."""
        self.completions += 1
        self.completions_digest = self.completions_digest + mix(seq) & _M64


def compare(host: HostLedger, guest: GuestLedger) -> Iterator[str]:
    """Yield one line for each way in which the ledgers disagree, or own up to a fault."""
    sent = guest.sent_in_band + guest.sent_gpa_direct
    received = host.requests_in_band + host.requests_gpa_direct
    for what, left, right in (
        ("guest requests sent / received by the host", sent, received),
        ("... in-band", guest.sent_in_band, host.requests_in_band),
        ("... GPA-direct", guest.sent_gpa_direct, host.requests_gpa_direct),
        ("digest of guest requests", guest.sent_digest, host.requests_digest),
        ("host's answers given / received by the guest", host.answered, guest.answers),
        ("guest requests sent / answered", sent, guest.answers),
        ("digest of answered guest requests", host.answered_digest, guest.answered_digest),
        ("... against requests sent", guest.sent_digest, guest.answered_digest),
        ("host requests sent / received by the guest", host.sent_requests, guest.host_requests),
        ("host notifies sent / received by the guest", host.sent_notifies, guest.host_notifies),
        ("digest of host packets", host.sent_digest, guest.host_digest),
        ("last host sequence number", host.last_seq, guest.last_seq),
        ("host requests sent / completed", host.sent_requests, host.completions),
        ("guest's answers given / received by the host", guest.host_answered, host.completions),
        ("digest of completions", guest.host_answered_digest, host.completions_digest),
    ):
        if left != right:
            yield (
                f"{what}: {left:#x} / {right:#x}"
                if "digest" in what
                else f"{what}: {left} / {right}"
            )
    for what, count in (
        ("guest: answers to requests that are not outstanding", guest.unknown_answers),
        ("guest: answers with a wrong CRC", guest.bad_answers),
        ("guest: wrong external buffers", guest.bad_external),
        ("guest: malformed packets", guest.malformed),
        ("guest: host packets twice or out of order", guest.twice),
        ("guest: host packets lost", guest.lost),
        ("guest: host packets with a wrong body", guest.bad_bodies),
        ("guest: host requests never answered", guest.owed),
        ("host: guest requests twice or out of order", host.requests_twice),
        ("host: guest requests lost", host.requests_lost),
        ("host: guest requests with a wrong body", host.bad_bodies),
        ("host: completions nobody waits for", host.completions_unknown),
        ("host: completions with a wrong CRC", host.bad_completions),
    ):
        if count:
            yield f"{what}: {count}"
