# SPDX-License-Identifier: MIT
"""For the tests of driver projects: a pytest plugin that boots, saves and restores machines."""
