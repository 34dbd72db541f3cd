# SPDX-License-Identifier: MIT
"""``vmbus ps`` and ``vmbus inspect`` of a machine that runs a real guest."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120


async def _vmbus(*args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "emulator.cli",
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


async def test_a_running_machine_is_found_and_looked_into(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(name="looked-at"))
    await vm.boot()
    assert vm.backend_child is not None
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)
        await vm.control("probe.freeze")
        counts = (await vm.control("probe.counts"))["in_flight"]

        status, out, _ = await _vmbus("ps", "--json")
        assert status == 0
        (row,) = json.loads(out)
        assert (row["name"], row["pid"]) == ("looked-at", vm.backend_child.pid)
        assert (row["version"], row["open_channels"]) == ("5.3", 2)

        status, out, _ = await _vmbus("inspect", "looked-at", "--json")
        assert status == 0
        report = json.loads(out)
        data = next(channel for channel in report["channels"] if channel["role"] == "data")
        # What the device says of itself is what is seen from outside.
        flight = data["flight"]
        assert data["hold"] == "quota"
        assert flight["held"] == counts["guest request, held by device"]
        assert flight["unread_requests"] == counts["guest request, unread in ring"]
        assert flight["unread_completions"] == counts["guest completion, unread in ring"]
        assert data["guest_to_host"]["used"] > 0
        assert data["counters"]["packets_in"] >= 80
        assert sum(data["doorbell_to_callback"]["counts"]) > 0

        channel_id = str(data["id"])
        status, out, _ = await _vmbus("inspect", "looked-at", channel_id)
        assert status == 0
        for words in ("probe/data: open", "guest to host", "held (quota 6)", "accepted"):
            assert words in out
        status, out, _ = await _vmbus("inspect", str(vm.backend_child.pid), "--metrics")
        families = {family.name for family in text_string_to_metric_families(out)}
        assert {"vmbus_guest_info", "vmbus_ring_used_bytes"} <= families

        # The looks have disturbed nothing: the conversation goes on to its end.
        await vm.control("probe.thaw")
        assert (await vm.control("probe.finish"))["problems"] == []
    await vm.kill()
    assert (await _vmbus("ps"))[1:] == ("", "no VM is running\n")


async def test_mistakes_are_answered_with_one_line(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(name="there"))
    await vm.boot()
    await vm.control("status")
    for args, words in (
        (("inspect", "not-there"), "no VM 'not-there' is running; there is there"),
        (("inspect", "there", "77"), "there has no channel 77; its channels: 1, 2"),
        (("inspect", "there", "--json", "--metrics"), "choose one"),
    ):
        status, out, err = await _vmbus(*args)
        assert (status, out) == (1, "")
        assert words in err
        assert err.count("\n") == 1


async def test_a_registry_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "vmbus"
    await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread(folder.chmod, 0o777)
    status, out, err = await _vmbus("ps")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "must be yours alone" in err
