# SPDX-License-Identifier: MIT
"""``vmbus ps``: which VMs this user's backends serve."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="for a program to read")]


def ps(as_json: AsJson = False) -> None:
    """List the virtual machines that a VMBus backend of yours serves."""
    from emulator.cli.asking import ask_all, fail
    from emulator.machine.registry import RegistryError, entries

    try:
        known = entries()
    except RegistryError as error:
        fail(str(error))
    reports = asyncio.run(ask_all(known))
    rows: list[dict[str, Any]] = []
    for entry, report in zip(known, reports, strict=True):
        row: dict[str, Any] = {"name": entry.name, "pid": entry.pid, "control": entry.control}
        if isinstance(report, RegistryError):
            row["error"] = str(report)
        else:
            row |= {
                "connected": report.connected,
                "running": report.running,
                "version": report.version,
                "memory_bytes": sum(size for _, size in report.memory),
                "channels": len(report.channels),
                "open_channels": sum(channel.state == "open" for channel in report.channels),
                "guest_errors": report.guest_errors,
                "uptime_seconds": report.uptime_seconds,
            }
        rows.append(row)
    if as_json:
        import json

        print(json.dumps(rows, indent=1))
    else:
        _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    from emulator.cli.tables import console, duration, plain, size, table

    if not rows:
        print("no VM is running", file=sys.stderr)
        return
    shown = table("name", ">pid", "guest", ">memory", ">open", ">channels", ">errors", ">up")
    for row in rows:
        if "error" in row:
            shown.add_row(plain(row["name"]), str(row["pid"]), plain(row["error"]))
            continue
        if not row["connected"]:
            guest = "no QEMU"
        elif not row["version"]:
            guest = "not on the bus"
        else:
            guest = f"VMBus {row['version']}"
        if row["connected"] and not row["running"]:
            guest += ", stopped"
        shown.add_row(
            plain(row["name"]),
            str(row["pid"]),
            guest,
            size(row["memory_bytes"]),
            str(row["open_channels"]),
            str(row["channels"]),
            str(row["guest_errors"]),
            duration(row["uptime_seconds"]),
        )
    console().print(shown)
