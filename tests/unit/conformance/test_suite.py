# SPDX-License-Identifier: MIT
"""All scenarios hold, the page about them is up to date, and a broken endpoint fails them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from emulator.cli import app
from emulator.conformance import report, suite
from emulator.conformance.suite import Basis, Result, Scenario, Section, Verdict, run_one
from emulator.devices.probe.protocol import ProbeType
from emulator.kmcl import KmclError, ServerChannel
from emulator.kmcl import snapshot as snapshot_module
from emulator.kmcl.packets import IncomingPacket, OutgoingPacket, TransactionTable
from emulator.kmcl.snapshot import RestoreSession, SaveSession
from emulator.kmcl.states import OutgoingState, Restore
from emulator.kmcl.traffic import Traffic
from emulator.lab.conformance import cases
from emulator.lab.conformance.unseen import UNSEEN
from emulator.ring import OutgoingRing
from emulator.wire.ntstatus import NtStatus

ROOT = Path(__file__).parents[3]
SCENARIOS = suite.load()
RECORDED = report.decode_recorded((ROOT / "docs/conformance.json").read_bytes())


@pytest.mark.parametrize("number", range(1, 72))
def test_scenario(number: int) -> None:
    result = run_one(SCENARIOS[number])
    assert result.verdict.good, result.observed


def test_there_are_71_and_each_says_what_it_rests_on() -> None:
    assert sorted(SCENARIOS) == list(range(1, 72))
    for scenario in SCENARIOS.values():
        assert scenario.basis
        assert scenario.expected
        assert scenario.source
        # What is documented is specified, at least in part.
        assert scenario.specified or scenario.basis != (Basis.DOCUMENTED,)


def test_the_page_is_what_the_suite_says() -> None:
    page = (ROOT / "docs/conformance.md").read_text()
    again = "vmbus conformance --markdown docs/conformance.md --recorded docs/conformance.json"
    wanted = report.as_markdown(suite.run(), RECORDED, tuple(cases.MACHINE.values()))
    assert page == wanted, f"make it anew: {again}"


def test_the_kept_run_end_to_end_has_each_scenario_and_failed_none() -> None:
    again = "make it anew: vmbus conformance run --end-to-end --record docs/conformance.json"
    made = cases.load()
    assert list(RECORDED.scenarios) == list(cases.scenarios()), again
    for key, seen in RECORDED.scenarios.items():
        assert (key in made) != (key in UNSEEN), key
        if key in UNSEEN:
            assert (seen.verdict, seen.observed) == ("not visible", UNSEEN[key]), again
        else:
            specified = cases.scenarios()[key].specified
            assert seen.verdict == ("pass" if specified else "n/s"), (key, again)
            assert seen.uses == made[key].uses, again
    assert RECORDED.qemu.startswith("QEMU ")
    assert RECORDED.guest.startswith("Linux ")


def test_the_driver_authors_page_has_the_commands_of_each_scenario() -> None:
    page = (ROOT / "docs/probe.md").read_text()
    assert report.uses_markdown(RECORDED) in page
    orders = {kind.name for kind in ProbeType}
    for seen in RECORDED.scenarios.values():
        assert set(seen.uses.split()) <= orders


# A broken endpoint.


def _lose_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save forgets the last packet of the queue."""
    real = SaveSession.__init__

    def init(self: SaveSession, channel: object, head: object, items: object, ask: object) -> None:
        real(self, channel, head, list(items)[:-1], ask)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(SaveSession, "__init__", init)


def _reuse_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter of transaction ids starts anew after a restore, and ids are not looked up."""
    monkeypatch.setattr(TransactionTable, "reserve", lambda self, next_id: None)

    def add(self: TransactionTable, packet: OutgoingPacket) -> int:
        number = self._next
        self._packets[number] = packet
        self._advance()
        return number

    monkeypatch.setattr(TransactionTable, "add", add)


def _swap_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore puts queued packets in front."""
    real = RestoreSession.accept

    def accept(self: RestoreSession, packet: OutgoingPacket, lib: bytes) -> NtStatus:
        status = real(self, packet, lib)
        queue = self._channel.traffic.queue
        if status.is_success and packet.state is OutgoingState.QUEUED:
            queue.remove(packet)
            queue.appendleft(packet)
        return status

    monkeypatch.setattr(RestoreSession, "accept", accept)


def _complete_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion routine runs twice."""
    real = OutgoingPacket.finish

    def finish(self: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        routine = self._routine
        seen: list[object] = []

        def twice(packet: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
            routine(packet, status, data)
            if not seen and packet.state is OutgoingState.FREED:
                seen.append(True)
                packet._state = OutgoingState.ALLOCATED
                packet._channel._packets_alive += 1
                routine(packet, status, data)

        self._routine = twice
        real(self, status, data)

    monkeypatch.setattr(OutgoingPacket, "finish", finish)


def _lose_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is not signalled when a restored channel starts."""
    real = ServerChannel.port_restored

    def port_restored(self: ServerChannel, incoming: object, outgoing: object) -> None:
        real(self, incoming, outgoing)  # type: ignore[arg-type]
        self._signal_at_start = False

    monkeypatch.setattr(ServerChannel, "port_restored", port_restored)
    publish = OutgoingRing.publish
    monkeypatch.setattr(OutgoingRing, "publish", lambda self: publish(self) and False)


def _skip_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """EvtSuspend does not run."""
    real = ServerChannel._call

    def call(self: ServerChannel, name: str, callback: object) -> None:
        if name != "EvtChannelSuspend":
            real(self, name, callback)  # type: ignore[arg-type]

    monkeypatch.setattr(ServerChannel, "_call", call)


def _stale_gpadl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest gets the pages of a GPADL back while they are mapped."""
    from emulator.kmcl.gpadls import MappedGpadls

    monkeypatch.setattr(MappedGpadls, "torn_down", lambda self, handle, released: released())


def _wrong_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """RestoreFromBuffer says SUCCESS before the last chunk."""
    real = snapshot_module.Snapshots.restore_from_buffer

    def restore(self: snapshot_module.Snapshots, buffer: bytes) -> NtStatus:
        status = real(self, buffer)
        return NtStatus.SUCCESS if status is NtStatus.MORE_PROCESSING_REQUIRED else status

    monkeypatch.setattr(snapshot_module.Snapshots, "restore_from_buffer", restore)


def _keep_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel whose restore failed can be started."""
    real = snapshot_module.Snapshots.restore_from_buffer

    def restore(self: snapshot_module.Snapshots, buffer: bytes) -> NtStatus:
        status = real(self, buffer)
        if self.restore is Restore.FAILED:
            self.restore = Restore.COMPLETE
        return status

    monkeypatch.setattr(snapshot_module.Snapshots, "restore_from_buffer", restore)


def _leak_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that wait for the guest are not ended when the channel is."""
    monkeypatch.setattr(Traffic, "in_ring", lambda self: [])


def _lose_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion that was unread at the save is dropped as one of an unknown id."""
    monkeypatch.setattr(
        Traffic, "_take_completion", lambda self, packet: self.table.find(packet.transaction_id)
    )


def _two_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet's views can be used after its completion."""
    monkeypatch.setattr(IncomingPacket, "_end_views", lambda self: None)


def _send_when_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A send after EvtSuspend is not refused."""
    real = ServerChannel.send

    def send(self: ServerChannel, packet: OutgoingPacket, payload: bytes, waits: bool) -> None:
        self._suspended = False
        real(self, packet, payload, waits)

    monkeypatch.setattr(ServerChannel, "send", send)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "lost queued packet": _lose_queued,
    "reused transaction id": _reuse_ids,
    "order swap": _swap_order,
    "double completion": _complete_twice,
    "lost wake-up": _lose_wake_up,
    "skipped callback": _skip_callback,
    "stale GPADL": _stale_gpadl,
    "wrong status": _wrong_status,
    "partial restore kept": _keep_partial,
    "leaked packet": _leak_packet,
    "lost completion": _lose_completion,
    "views that outlive their packet": _two_completions,
    "send while suspended": _send_when_suspended,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_endpoint_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    failed = [result.scenario.number for result in suite.run() if not result.verdict.good]
    assert failed, name


# Reports.


INVISIBLE = Verdict.INVISIBLE


def _of(verdict: Verdict, observed: str = "seen <& | >") -> Result:
    def run() -> str:
        match verdict:
            case Verdict.FAILED:
                raise suite.Mismatch(observed)
            case Verdict.BROKEN:
                raise KmclError(NtStatus.UNSUCCESSFUL, observed)
            case Verdict.PASSED | Verdict.RECORDED | Verdict.INVISIBLE:
                return observed

    result = run_one(
        Scenario(
            *(1, Section.API, "a title", "expected", (Basis.INFERRED,), "source"),
            specified=verdict is not Verdict.RECORDED,
            run=run,
        )
    )
    return dataclasses.replace(result, verdict=verdict) if verdict is INVISIBLE else result


def test_reports_tell_each_verdict() -> None:
    results = [_of(verdict) for verdict in Verdict]
    assert [result.verdict for result in results] == list(Verdict)
    rows = json.loads(report.as_json(results))
    assert [row["verdict"] for row in rows] == [
        "passed",
        "recorded",
        "failed",
        "broken",
        "invisible",
    ]
    tree = ElementTree.fromstring(report.as_junit(results))
    assert [tree.get(name) for name in ("tests", "failures", "errors", "skipped")] == [*"5111"]
    assert [len(case.findall("*")) for case in tree] == [1, 1, 1, 1, 1]
    assert tree.find("testcase/skipped") is not None
    failure = tree.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "seen <& | >"
    page = report.as_markdown(results)
    assert "seen <& \\| >" in page
    assert report.summary(results) == (
        "5 scenarios: 1 pass, 1 not specified and recorded, 1 fail, 1 not visible to a guest, "
        "1 could not be run"
    )


def test_the_command_runs_what_it_is_asked_for(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    done = CliRunner().invoke(app, ["conformance", "run", "5", "47", "--junit", str(junit)])
    assert done.exit_code == 0, done.output
    assert "2 scenarios: 2 pass" in done.output
    assert ElementTree.parse(junit).getroot().get("tests") == "2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "5", "99"], "there is no scenario 99; they are 1 to 71"),
        (["run", "R3"], "R0 to R7 need a machine: --end-to-end"),
        (["run", "--end-to-end", "72", "R8"], "there is no scenario 72, R8"),
        (["run", "--end-to-end", "--quick", "5"], "give numbers or --quick"),
        (["run", "--quick"], "are for --end-to-end"),
        (["run", "5", "--end-to-end", "--record", "x.json"], "is of a run of all scenarios"),
        (["run", "5", "--end-to-end", "--markdown", "x.md"], "for runs in one process"),
        (["--recorded", "x.json"], "--recorded is for --markdown"),
        (["--recorded", "/nowhere.json", "--markdown", "x.md"], "/nowhere.json: No such file"),
        (["--recorded", __file__, "--markdown", "x.md"], "JSON is malformed"),
        (["run", "5", "--json", "/nowhere/at/all.json"], "/nowhere/at/all.json: No such file"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["conformance", *arguments])
    assert done.exit_code == 1
    assert words in done.output
    assert "Traceback" not in done.output


def test_the_command_fails_if_a_scenario_does(monkeypatch: pytest.MonkeyPatch) -> None:
    _stale_gpadl(monkeypatch)
    done = CliRunner().invoke(app, ["conformance", "run", "56"])
    assert done.exit_code == 1
    assert "FAIL" in done.output
