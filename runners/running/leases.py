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
        locks: folder of the locks that keep other runs off the GPUs.
    """

    def __init__(self, leases: list[Lease], *, cells_per_device: int = 1, locks: Path | None = None) -> None:
        self._places = [_Place(lease) for lease in leases]
        self._cells_per_device = cells_per_device
        self._folder = locks or device_locks()

    def take(self, *, shares: bool) -> Lease | None:
        """A device for one cell, or None while there is none: all are taken, here or by another run.

        Args:
            shares: whether neither time, memory nor energy of the cell are read (a tuning trial, or a sweep that
                measures no cost), so that it may share a device with its like.
        """
        if shares:
            shared = [p for p in self._places if 0 < p.unmeasured < self._cells_per_device]
            if shared:
                shared[0].unmeasured += 1
                return shared[0].lease
        for place in self._places:
            if not place.measured and not place.unmeasured and self._lock(place):
                place.measured, place.unmeasured = not shares, int(shares)
                return place.lease
        return None

    @property
    def free(self) -> bool:
        """True if this run has a device that none of its cells uses."""
        return any(not place.measured and not place.unmeasured for place in self._places)

    def give(self, lease: Lease) -> None:
        """The cell on this device is over."""
        place = next(p for p in self._places if p.lease is lease)
        if place.measured:
            place.measured = False
        else:
            place.unmeasured -= 1
        if not place.unmeasured:
            for lock in place.locks:
                lock.release()
            place.locks = ()

    def close(self) -> None:
        """Give every device back."""
        for place in self._places:
            for lock in place.locks:
                lock.release()
            place.measured, place.unmeasured, place.locks = False, 0, ()

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
