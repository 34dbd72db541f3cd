# SPDX-License-Identifier: MIT
"""The conformance scenarios with a stock kernel; a broken endpoint is found there too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.conformance.suite import Result, Verdict
from emulator.lab.conformance import cases
from emulator.lab.conformance.bench import linux_guest
from emulator.lab.conformance.run import quick, run
from emulator.lab.images import GuestImage

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]


def _bad(results: list[Result]) -> dict[str, str]:
    return {each.scenario.key: each.observed for each in results if not each.verdict.good}


async def test_the_reduced_set_holds(qemu: Path, image: GuestImage, tmp_path: Path) -> None:
    results = await run(quick(), qemu=qemu, machine=linux_guest(image), folder=tmp_path)
    assert _bad(results) == {}
    assert len(results) == len(quick()) >= 12


@pytest.mark.full
async def test_all_scenarios_hold(qemu: Path, image: GuestImage, tmp_path: Path) -> None:
    results = await run((), qemu=qemu, machine=linux_guest(image), folder=tmp_path)
    assert _bad(results) == {}
    assert [each.scenario.key for each in results] == list(cases.scenarios())
    seen = [each for each in results if each.verdict is not Verdict.INVISIBLE]
    assert len(seen) == len(cases.load())


# What the backend of each machine does before all else: the endpoint is then broken in its saves
# and restores, and nowhere else, so that the machine boots and talks.
BREAKS = {
    "queued packets change their order": (
        "45",
        """
from emulator.kmcl.snapshot import RestoreSession
from emulator.kmcl.states import OutgoingState
real = RestoreSession.accept
def accept(self, packet, lib):
    status = real(self, packet, lib)
    queue = self._channel.traffic.queue
    if packet.state is OutgoingState.QUEUED:
        queue.remove(packet)
        queue.appendleft(packet)
    return status
RestoreSession.accept = accept
""",
    ),
    "the last queued packet is lost": (
        "45",
        """
from emulator.kmcl.snapshot import SaveSession
real = SaveSession.__init__
def init(self, channel, head, items, ask):
    real(self, channel, head, list(items)[:-1], ask)
SaveSession.__init__ = init
""",
    ),
    "EvtOpened runs and forgets": (
        "59",
        """
from emulator.kmcl import ServerChannel
real = ServerChannel.port_restored
def port_restored(self, incoming, outgoing):
    self._call_opened()
    real(self, incoming, outgoing)
ServerChannel.port_restored = port_restored
""",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if number else ())
        for number, name in enumerate(BREAKS)
    ],
)
async def test_a_broken_endpoint_is_found(
    qemu: Path, image: GuestImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    key, code = BREAKS[name]
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (result,) = await run(
        [key], qemu=qemu, machine=linux_guest(image), folder=tmp_path / "run", patience=60
    )
    # Not necessarily FAILED: what shows in the stream already is refused when it is restored.
    assert not result.verdict.good, result.observed
