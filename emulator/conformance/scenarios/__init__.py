# SPDX-License-Identifier: MIT
"""The scenarios, a module for each section; ``emulator.conformance.suite.load`` registers them."""
