# SPDX-License-Identifier: MIT
"""A VMBus host for QEMU guests: Hyper-V's paravirtual bus, its devices and KMCL endpoints."""
