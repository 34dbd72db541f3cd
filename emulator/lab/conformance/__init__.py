# SPDX-License-Identifier: MIT
"""The conformance scenarios end to end: a stock kernel, real snapshots, new processes."""
