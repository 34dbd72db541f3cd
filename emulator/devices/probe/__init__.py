# SPDX-License-Identifier: MIT
"""The probe: a device made to exercise save and restore (docs/probe.md)."""

from emulator.devices.probe.device import ProbeDevice

__all__ = ["ProbeDevice"]
