# SPDX-License-Identifier: MIT
"""The scenarios that have no end-to-end run, each with the reason."""

from __future__ import annotations

from typing import Final

_CALL: Final = "a call of the VSP and its status, inside the host"
_STANDS: Final = "the guest's virtual CPUs stand while this happens"

UNSEEN: Final[dict[str, str]] = {
    "2": f"{_CALL}: the registration that stays is seen in 1",
    "3": f"{_CALL}: which of two registrations is called shows to the VSP only",
    "6": f"{_CALL}; what comes of it is seen in 8",
    "9": _CALL,
    "11": "a client has no save functions: nothing a guest could call",
    "14": "whether a second call is made shows to the VSP only",
    "18": "the packet never was in the ring, or has left it: nothing of it can reach the guest",
    "27": f"{_CALL}; a stream with more behind its end is refused in 26",
    "34": f"{_CALL}: a machine's restore makes its channels anew",
    "36": f"{_STANDS}: no guest can open a channel that is paused",
    "37": _CALL,
    "38": _CALL,
    "39": f"the order of the VSP's callbacks; that packets come after EvtStarted is seen in 44. "
    f"{_STANDS}",
    "41": "the probe offers no sub-channels; stock storvsc and netvsc have them",
    "54": "whether the host's mapping is ready at once shows to the VSP only",
    "58": "the probe has no transfer pages; stock netvsc has them",
    "70": "the probe's channels are no pipes; stock hv_utils has such",
    "R5": "a stock kernel sends Unload before a crash kernel or kexec takes over; "
    "firmware that does not is not part of the test guest",
}
