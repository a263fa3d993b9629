"""Leases of devices. A cell whose cost is measured is alone on its device, also when several runs share the machine.

GPUs are leased by UUID under a kernel lock in a folder that all runs of the machine share, so that a second sweep waits
for a free one instead of measuring at the same time. CPU cores are leased without overlap within one run; the record
says how many cells ran at the same time.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from runners.executors.base import Lease

if TYPE_CHECKING:
    from filelock import FileLock


def device_locks() -> Path:
    """The machine's folder of device locks."""
    return Path(tempfile.gettempdir()) / "peft-matrix-devices"


@dataclass
class _Place:
    lease: Lease
    measured: bool = False
    unmeasured: int = 0
    locks: tuple[FileLock, ...] = ()


class Pool:
    """The devices of one run.

    Args:
        leases: the devices, none of which overlap.
        cells_per_device: how many cells whose cost is not measured may share one.
        at_once: how many devices may be leased apart from each other, where a machine is divided into more parts than
            cells run on it at the same time; None: all.
        locks: folder of the locks that keep other runs off the GPUs.
    """

    def __init__(
        self,
        leases: list[Lease],
        *,
        cells_per_device: int = 1,
        at_once: int | None = None,
        locks: Path | None = None,
    ) -> None:
        self._places = [_Place(lease) for lease in leases]
        self._at_once = at_once or len(leases)
        self._wide: list[tuple[Lease, list[_Place]]] = []
        self._cells_per_device = cells_per_device
        self._folder = locks or device_locks()

    def take(self, *, shares: bool, devices: int = 1) -> Lease | None:
        """Devices for one cell, or None while there are not enough: all are taken, here or by another run.

        Several devices are taken all at once or not at all, and nothing is held while waiting, so that two runs never
        wait for each other.

        Args:
            shares: whether neither time, memory nor energy of the cell are read (a tuning trial, or a sweep that
                measures no cost), so that it may share a device with its like.
            devices: how many; several are never shared.
        """
        if devices > 1:
            return self._several(devices)
        if shares:
            shared = [p for p in self._places if 0 < p.unmeasured < self._cells_per_device]
            if shared:
                shared[0].unmeasured += 1
                return shared[0].lease
        if not self.free:
            return None
        for place in self._idle():
            if self._lock(place):
                place.measured, place.unmeasured = not shares, int(shares)
                return place.lease
        return None

    def _several(self, devices: int) -> Lease | None:
        """All of them or none, in the order of their names."""
        taken: list[_Place] = []
        if not self.free or len(self._idle()) < devices:
            return None
        for place in sorted(self._idle(), key=lambda p: (p.lease.gpus, p.lease.cores)):
            if len(taken) < devices and self._lock(place):
                taken.append(place)
        if len(taken) < devices:
            for place in taken:
                _unlock(place)
            return None
        for place in taken:
            place.measured = True
        gpus = tuple(gpu for place in taken for gpu in place.lease.gpus)
        lease = Lease(gpus, tuple(core for place in taken for core in place.lease.cores))
        self._wide.append((lease, taken))
        return lease

    def _idle(self) -> list[_Place]:
        return [place for place in self._places if not place.measured and not place.unmeasured]

    @property
    def free(self) -> bool:
        """True if this run has a device that none of its cells uses, and may use it beside those that it uses."""
        inside = {id(place) for _, taken in self._wide for place in taken}
        used = [place for place in self._places if place.measured or place.unmeasured]
        cells = len(self._wide) + sum(id(place) not in inside for place in used)
        return cells < self._at_once and len(used) < len(self._places)

    def give(self, lease: Lease) -> None:
        """The cell on these devices is over."""
        for index, (wide, taken) in enumerate(self._wide):
            if wide is lease:
                del self._wide[index]
                for place in taken:
                    place.measured = False
                    _unlock(place)
                return
        place = next(p for p in self._places if p.lease is lease)
        if place.measured:
            place.measured = False
        else:
            place.unmeasured -= 1
        if not place.unmeasured:
            _unlock(place)

    def close(self) -> None:
        """Give every device back."""
        self._wide.clear()
        for place in self._places:
            _unlock(place)
            place.measured, place.unmeasured = False, 0

    def _lock(self, place: _Place) -> bool:
        """Keep other runs off the GPUs of a place; False if one of them is taken."""
        if not place.lease.gpus:
            return True
        from filelock import FileLock, Timeout

        held: list[FileLock] = []
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):  # another user made it in this moment
                    self._folder.chmod(0o1777)
            for uuid in place.lease.gpus:
                lock = FileLock(self._folder / f"{uuid}.lock", mode=0o666, thread_local=False, fallback_to_soft=False)
                lock.acquire(blocking=False)
                held.append(lock)
        except Timeout:
            for lock in held:
                lock.release()
            return False
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"devices cannot be locked: {error}",
                where=str(self._folder),
                fix="Make the folder writable for all users of this machine.",
            ) from error
        place.locks = tuple(held)
        return True


def _unlock(place: _Place) -> None:
    for lock in place.locks:
        lock.release()
    place.locks = ()
