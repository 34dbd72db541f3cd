# SPDX-License-Identifier: MIT
"""The two kinds of storage device that can be offered; they differ in nothing but the offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from emulator.devices.storage.device import StorageDevice
from emulator.devices.storage.options import IdeOptions, ScsiOptions, convert, version_named
from emulator.devices.storage.protocol import (
    IDE_INTERFACE,
    SCSI_INTERFACE,
    ide_instance,
    ide_offer,
)
from emulator.kmcl import ChannelPort, ServerChannel


class ScsiDevice(StorageDevice):
    """The synthetic SCSI controller."""

    kind: ClassVar[str] = "scsi"

    def __init__(self, name: str, vm: str, port: ChannelPort, options: ScsiOptions) -> None:
        """Open the disks; raises :class:`DeviceStateError`."""
        super().__init__(
            name,
            vm,
            port,
            options.luns,
            sub_channels=options.sub_channels,
            max_version=version_named(options.max_version),
        )

    @classmethod
    def make(cls, name: str, vm: str, port: ChannelPort, options: Mapping[str, Any]) -> Self:
        """See :class:`Device`; the options are :class:`ScsiOptions`."""
        return cls(name, vm, port, convert(f"device {name}", options, ScsiOptions))

    def offer_on(self, channel: ServerChannel) -> None:
        """See :class:`StorageDevice`."""
        channel.init_set_target_interface_id(SCSI_INTERFACE, self.instance_guid("scsi"))


class IdeDevice(StorageDevice):
    """The accelerator of a disk that the guest has on its IDE controller."""

    kind: ClassVar[str] = "ide"

    def __init__(self, name: str, vm: str, port: ChannelPort, options: IdeOptions) -> None:
        """Open the disk; raises :class:`DeviceStateError`."""
        self._place = options.channel, options.device
        super().__init__(
            name,
            vm,
            port,
            (options.disk,),
            sub_channels=0,
            max_version=version_named(options.max_version),
            anywhere=True,
        )

    @classmethod
    def make(cls, name: str, vm: str, port: ChannelPort, options: Mapping[str, Any]) -> Self:
        """See :class:`Device`; the options are :class:`IdeOptions`."""
        return cls(name, vm, port, convert(f"device {name}", options, IdeOptions))

    def offer_on(self, channel: ServerChannel) -> None:
        """See :class:`StorageDevice`."""
        channel.init_set_target_interface_id(IDE_INTERFACE, ide_instance(*self._place))
        channel.init_set_user_defined(ide_offer(*self._place))
