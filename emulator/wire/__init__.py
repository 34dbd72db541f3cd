# SPDX-License-Identifier: MIT
"""Byte layouts, GUIDs and status codes of VMBus, one definition each; nothing acts on them here."""
