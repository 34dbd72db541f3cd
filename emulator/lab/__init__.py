# SPDX-License-Identifier: MIT
"""Scenarios over whole machines: boot, talk, save, kill, restore, compare. Floor 7."""
