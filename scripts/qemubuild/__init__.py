# SPDX-License-Identifier: MIT
"""What scripts/build-qemu and the tools for its patches share; Python's standard library only."""
