# SPDX-License-Identifier: MIT
"""What a person or a test can ask of a storage device while the guest runs (control socket)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from emulator.devices.base import Command, DeviceStateError
from emulator.devices.storage.controller import Controller
from emulator.devices.storage.options import LunOptions, convert


class LunCommands:
    """The commands that concern the LUNs of one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def table(self) -> Mapping[str, Command]:
        """Name the commands."""
        return {
            "luns": self.luns,
            "attach": self.attach,
            "detach": self.detach,
            "resize": self.resize,
            "insert": self.insert,
            "eject": self.eject,
        }

    def _lun(self, args: dict[str, Any]) -> int:
        lun = args.get("lun", 0)
        if not isinstance(lun, int):
            raise DeviceStateError(f"lun must be a number, not {lun!r}")
        return lun

    async def luns(self, _: dict[str, Any]) -> Any:
        """Describe the LUNs."""
        return [
            {
                **msgspec.to_builtins(active.options),
                "lun": number,
                "uuid": str(active.unit.identity.uuid),
                "blocks": active.unit.blocks,
                "under_way": active.flights,
            }
            for number, active in sorted(self._controller.luns.items())
        ]

    async def attach(self, args: dict[str, Any]) -> Any:
        """Plug a LUN; the arguments are its options."""
        self._controller.plug(convert(f"device {self._controller.name}", args, LunOptions))
        return {}

    async def detach(self, args: dict[str, Any]) -> Any:
        """Pull a LUN; returns when nothing is under way on it any more."""
        gone = asyncio.Event()
        self._controller.pull(self._lun(args), gone.set)
        await gone.wait()
        return {}

    async def resize(self, args: dict[str, Any]) -> Any:
        """Take note of another size of a disk's file."""
        return {"size": self._controller.resize(self._lun(args))}

    async def insert(self, args: dict[str, Any]) -> Any:
        """Put a disc into a drive."""
        path = args.get("path")
        if not isinstance(path, str) or not path:
            raise DeviceStateError("path must name the disc's image")
        self._controller.insert(self._lun(args), path)
        return {}

    async def eject(self, args: dict[str, Any]) -> Any:
        """Take the disc out, or ask the guest to let go of it."""
        force = bool(args.get("force", False))
        return {"ejected": self._controller.eject(self._lun(args), force=force)}
