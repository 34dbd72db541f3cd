# SPDX-License-Identifier: MIT
"""Asks running backends, over their control sockets, and tells the user plainly what went wrong."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import typer

from emulator.machine.control import ControlClient, ControlError
from emulator.machine.registry import Entry, RegistryError
from emulator.machine.report import Host

PATIENCE: Final = 5.0
"""Seconds a backend has for its answer: its loop is seldom busy for longer than milliseconds."""


async def ask(entry: Entry, channel: int | None = None) -> Host:
    """Return the report of a VM; raises :class:`RegistryError` with the reason if there is none."""
    arguments = {} if channel is None else {"channel": channel}
    try:
        async with asyncio.timeout(PATIENCE):
            client = await ControlClient.connect(Path(entry.control))
            try:
                return msgspec.convert(await client.call("inspect", **arguments), Host)
            finally:
                await client.close()
    except TimeoutError as error:
        raise RegistryError(
            f"{entry.name} (pid {entry.pid}) did not answer in {PATIENCE:.0f} s"
        ) from error
    except OSError as error:
        raise RegistryError(f"{entry.name} (pid {entry.pid}): {error.strerror}") from error
    except (ControlError, msgspec.ValidationError) as error:
        raise RegistryError(str(error)) from error


async def ask_all(entries: list[Entry]) -> list[Host | RegistryError]:
    """Return the report of each VM, or why there is none."""

    async def one(entry: Entry) -> Host | RegistryError:
        try:
            return await ask(entry)
        except RegistryError as error:
            return error

    return await asyncio.gather(*map(one, entries))


def fail(text: str) -> NoReturn:
    """End the command with one line and a status of 1."""
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(1)
