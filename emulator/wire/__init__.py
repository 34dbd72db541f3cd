# SPDX-License-Identifier: MIT
"""Byte layouts, GUIDs and status codes of VMBus: one definition each, and nothing that acts on them."""
