# SPDX-License-Identifier: MIT
"""One VM: its configuration, its QEMU, its VMBus backend, its snapshots.

Floor 6. The names are imported from the modules: the backend process must start without what only
the owner of a machine needs (QMP), and the other way round.
"""
