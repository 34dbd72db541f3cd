# SPDX-License-Identifier: MIT
"""Does an endpoint do what KMCL's documents say? Scenarios by number; restores at any step."""
