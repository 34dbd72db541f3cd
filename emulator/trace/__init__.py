# SPDX-License-Identifier: MIT
"""The trace of a VMBus: records of messages, packets and events, in pcapng. Pure: no I/O.

``record`` is the format of one record, ``pcapng`` that of the file, ``feed`` the bounded queue
between the bus and whoever reads, ``decode`` the text of a record, ``vmbus.lua`` the dissector for
Wireshark and ``dissector`` what of it is generated.
"""
