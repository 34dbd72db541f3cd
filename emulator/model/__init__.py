# SPDX-License-Identifier: MIT
"""The guest's half of a channel, for those who check the host's: rings, packets, a driver.

Written from the reference tables and from what Linux guests do, and from nothing else in this
package: it imports none of it, so that the two check each other.
"""
