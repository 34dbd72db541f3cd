# SPDX-License-Identifier: MIT
"""The LUNs of a controller: made from options, plugged, pulled, resized, saved and restored.

It knows nothing of channels; :attr:`Controller.changed` is called when a guest ought to look anew.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from emulator.devices.base import DeviceStateError
from emulator.devices.storage.backend import Backend
from emulator.devices.storage.disk import Disk, Features
from emulator.devices.storage.dvd import Dvd
from emulator.devices.storage.inquiry import Identity
from emulator.devices.storage.lun import ActiveLun
from emulator.devices.storage.options import LunOptions, Medium, open_lun
from emulator.devices.storage.scsi import BLOCK, Sense
from emulator.devices.storage.state import LunState

log = logging.getLogger(__name__)

_PRODUCT: Final = {Medium.DISK: "Virtual Disk", Medium.DVD: "Virtual DVD-ROM"}


class Controller:
    """One target with up to 64 LUNs. ``identity`` makes the UUID of a LUN that was given none.

    With ``anywhere`` it is at every path and target, and not only at 0 and 0. An IDE accelerator
    is: its offer says where the disk is, and guests need not repeat it (Linux has path 0 for both
    IDE channels, storvsc_queuecommand).
    """

    def __init__(
        self,
        name: str,
        identity: Callable[[int], uuid.UUID],
        *,
        anywhere: bool = False,
    ) -> None:
        self.name = name
        self.anywhere = anywhere
        self._identity = identity
        self.luns: dict[int, ActiveLun] = {}
        self._leaving: list[ActiveLun] = []
        self.changed: Callable[[], None] = lambda: None

    def numbers(self) -> list[int]:
        """Return the LUNs there are, in ascending order."""
        return sorted(self.luns)

    def add(self, options: LunOptions) -> None:
        """Make a LUN; raises :class:`DeviceStateError`."""
        if options.lun in self.luns:
            raise DeviceStateError(f"device {self.name}: there is a LUN {options.lun} already")
        backend = open_lun(f"device {self.name}", options)
        self.luns[options.lun] = ActiveLun(
            options, self._unit(options, backend), backend, self.name
        )

    def _unit(self, options: LunOptions, backend: Backend | None) -> Disk | Dvd:
        its_uuid = uuid.UUID(options.uuid) if options.uuid else self._identity(options.lun)
        serial = options.serial or its_uuid.hex
        identity = Identity(its_uuid, _PRODUCT[options.medium], serial)
        if options.medium is Medium.DVD:
            size = None if backend is None else backend.size
            return Dvd(identity, self.numbers, size, lambda: self._ejected(options.lun))
        assert backend is not None, "the options have seen to that"
        if backend.size < BLOCK:
            backend.close()
            raise DeviceStateError(
                f"device {self.name}: LUN {options.lun}: {options.what} has {backend.size} bytes, "
                "which is not one block"
            )
        return Disk(identity, self.numbers, features(backend, options))

    def find(self, lun: int) -> ActiveLun:
        """Return a LUN; raises :class:`DeviceStateError`."""
        if lun not in self.luns:
            raise DeviceStateError(f"device {self.name}: there is no LUN {lun}")
        return self.luns[lun]

    # What a person does while the guest runs.

    def plug(self, options: LunOptions) -> None:
        """Add a LUN and have the guest look; raises :class:`DeviceStateError`."""
        self.add(options)
        self.changed()

    def pull(self, lun: int, gone: Callable[[], None]) -> None:
        """Take a LUN away; ``gone`` is called when what was under way has ended."""
        active = self.find(lun)
        del self.luns[lun]
        self._leaving.append(active)

        def idle() -> None:
            self._leaving.remove(active)
            active.close()
            gone()

        active.when_idle(idle)
        self.changed()

    def resize(self, lun: int) -> int:
        """Look how large a disk's medium is now, and tell the guest; returns bytes.

        Raises :class:`DeviceStateError`.
        """
        active = self.find(lun)
        unit, backend = active.unit, active.backend
        if not isinstance(unit, Disk) or backend is None:
            raise DeviceStateError(f"device {self.name}: LUN {lun} is no disk")
        try:
            size = backend.measure()
        except OSError as error:
            raise DeviceStateError(f"device {self.name}: LUN {lun}: {error.strerror}") from error
        if size != unit.features.size:
            unit.resize(features(backend, active.options))
            self.changed()
        return size

    def insert(self, lun: int, path: str) -> None:
        """Put a disc into a drive; raises :class:`DeviceStateError`."""
        active, unit = self._drive(lun)
        if active.backend is not None:
            raise DeviceStateError(f"device {self.name}: LUN {lun} has a disc; eject it first")
        options = msgspec.structs.replace(active.options, path=path)
        backend = open_lun(f"device {self.name}", options)
        assert backend is not None
        active.options, active.backend = options, backend
        unit.insert(backend.size)

    def eject(self, lun: int, *, force: bool) -> bool:
        """Take the disc out; False if the guest has locked the drive and was asked to let go.

        Raises :class:`DeviceStateError`.
        """
        unit = self._drive(lun)[1]
        if unit.removal_prevented and not force:
            unit.ask_for_eject()
            return False
        if unit.ready:
            unit.remove()
            unit.attention(Sense.MEDIUM_CHANGED)
            self._ejected(lun)
        return True

    def _drive(self, lun: int) -> tuple[ActiveLun, Dvd]:
        active = self.find(lun)
        if not isinstance(active.unit, Dvd):
            raise DeviceStateError(f"device {self.name}: LUN {lun} is no DVD drive")
        return active, active.unit

    def _ejected(self, lun: int) -> None:
        active = self.luns[lun]
        backend, active.backend = active.backend, None
        active.options = msgspec.structs.replace(active.options, path="", nbd="")
        if backend is not None:
            active.when_idle(backend.close)

    def let_go_of_memory(self, seconds: float) -> None:
        """Have nothing that is under way touch the guest's memory any more; wait so long at most
        for each LUN.
        """
        for active in (*self.luns.values(), *self._leaving):
            backend = active.backend
            if backend is not None and active.flights and not backend.let_go_of_memory(seconds):
                log.error(
                    "%s: LUN %d still uses the memory of a guest that is gone: %s",
                    self.name,
                    active.options.lun,
                    ", ".join(active.flights),
                )

    # Save and restore.

    def pending(self) -> list[str]:
        """Say which requests are under way."""
        return [
            f"LUN {active.options.lun}: {flight}"
            for active in (*self.luns.values(), *self._leaving)
            for flight in active.flights
        ]

    def saved(self) -> list[LunState]:
        """Return what a snapshot keeps of each LUN; raises :class:`DeviceStateError`."""
        return [self._saved(self.luns[number]) for number in self.numbers()]

    def _saved(self, active: ActiveLun) -> LunState:
        unit = active.unit
        try:
            stamp = active.backend.stamp() if active.backend is not None else None
        except OSError as error:
            raise DeviceStateError(
                f"device {self.name}: LUN {active.options.lun}: {error.strerror}"
            ) from error
        return LunState(
            options=active.options,
            uuid=str(unit.identity.uuid),
            stamp=stamp,
            attentions=[attention.name for attention in unit.attentions],
            reservations=unit.reservations.saved(),
            stopped=unit.stopped,
            removal_prevented=unit.removal_prevented,
            event=unit.event if isinstance(unit, Dvd) else 0,
        )

    def restore(self, saved: list[LunState]) -> None:
        """Be the controller of the snapshot, on the disks that are here.

        A LUN that the configuration has too is opened as that says, since files may have moved; one
        that was plugged while the guest ran, as it was then; one that was pulled is taken away.
        Raises :class:`DeviceStateError` with all disks that are not those of the snapshot.
        """
        problems: list[str] = []
        for number in self.numbers():
            if number not in {state.options.lun for state in saved}:
                self.luns.pop(number).close()
        for state in saved:
            try:
                self._take_up(state)
            except DeviceStateError as error:
                problems.append(str(error))
                continue
            problems += self._restore(self.luns[state.options.lun], state)
        if problems:
            raise DeviceStateError("; ".join(problems))

    def _take_up(self, state: LunState) -> None:
        """Have the LUN there, with the disc that was in it."""
        number = state.options.lun
        if number in self.luns and self.luns[number].options.medium is state.options.medium:
            active = self.luns[number]
            changed = active.options.medium is Medium.DVD and (
                (active.backend is None) != (state.stamp is None)
            )
            if not changed:
                return
        if number in self.luns:
            self.luns.pop(number).close()
        self.add(state.options)

    def _restore(self, active: ActiveLun, state: LunState) -> list[str]:
        what = f"device {self.name}: LUN {state.options.lun}"
        problems: list[str] = []
        unit, backend = active.unit, active.backend
        if str(unit.identity.uuid) != state.uuid:
            problems.append(
                f"{what}: this disk is {unit.identity.uuid}, that of the snapshot {state.uuid}"
            )
        if backend is not None and state.stamp is not None:
            stamp = backend.stamp()
            if stamp.size != state.stamp.size:
                problems.append(
                    f"{what}: {active.options.what} has {stamp.size} bytes, the disk of the "
                    f"snapshot had {state.stamp.size}"
                )
            elif stamp.written_ns != state.stamp.written_ns and not active.options.is_read_only:
                text = f"{what}: {active.options.what} was written after the snapshot was made"
                if active.options.allow_changed:
                    log.warning("%s; allow_changed is set", text)
                else:
                    problems.append(f"{text}; allow_changed takes it all the same")
        try:
            unit.attentions = [Sense[name] for name in state.attentions]
            unit.reservations.restore(state.reservations)
        except (KeyError, ValueError) as error:
            problems.append(f"{what}: {error} in the snapshot is not known here")
        unit.stopped = state.stopped
        unit.removal_prevented = state.removal_prevented
        if isinstance(unit, Dvd):
            unit.event = state.event
        unit.settle()
        return problems

    def close(self) -> None:
        """Let go of all that is behind the LUNs."""
        for active in self.luns.values():
            active.when_idle(active.close)
        self.luns.clear()


def features(backend: Backend, options: LunOptions) -> Features:
    """Return what a disk on this backend can do."""
    return Features(
        size=backend.size // BLOCK * BLOCK,
        read_only=options.is_read_only,
        discard=backend.discard and not options.is_read_only,
        discard_zeroes=backend.discard_zeroes,
    )
