# SPDX-License-Identifier: MIT
"""The synthetic SCSI controller and the IDE accelerator (docs/storage.md)."""

from emulator.devices.storage.kinds import IdeDevice, ScsiDevice

__all__ = ["IdeDevice", "ScsiDevice"]
