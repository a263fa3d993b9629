"""The few file operations a store needs, on a local folder and on any fsspec file system.

Paths are relative to the root, with forward slashes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from harness.bounded import open_regular
from harness.errors import UserError

T = TypeVar("T")

LARGEST_BYTES = 2**30
"""No file of a store is larger, segments apart. A larger one is refused instead of read into memory."""

_FOLDER_TRIES = 100

_FULL = {errno.ENOSPC, errno.EDQUOT}
_TELLING = ("ETag", "etag", "LastModified", "mtime", "updated", "last_modified", "modified", "created")
"""Names that file systems use for properties that change when a file is written again."""


class LocalFiles:
    """A folder on this machine.

    Args:
        root: the folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def show(self, path: str) -> str:
        """The path as people know it."""
        return str(self.root / path)

    def local_folder(self, name: str) -> Path | None:
        """A folder below the root that the kernel can lock files in."""
        return self.root / name

    def listing(self, top: str) -> Iterator[tuple[str, str]]:
        """Folder (relative to the root) and name of every file below ``top``.

        Raises:
            UserError: a folder may not be read.
        """
        pending = [top]
        while pending:
            folder = pending.pop()
            try:
                scan = os.scandir(self.root / folder)
            except FileNotFoundError:  # nothing was written there yet, or another process has just removed it
                continue
            except OSError as error:
                raise UserError(f"cannot be listed: {error.strerror}", where=self.show(folder)) from error
            with scan:
                for item in scan:
                    if item.is_dir(follow_symlinks=False):
                        pending.append(f"{folder}/{item.name}")
                    else:
                        yield folder, item.name

    def stamps(self, top: str) -> Iterator[tuple[str, str, str]]:
        """Folder, name and stamp of every file below ``top``; another stamp means that the file was written again.

        The stamp is size and time of modification: a file of the same size, put there with its old time, keeps it.
        """
        for folder, name in self.listing(top):
            try:
                found = os.stat(f"{self.root}/{folder}/{name}")
            except FileNotFoundError:
                continue  # gone since the folder was listed
            yield folder, name, f"{found.st_size} {found.st_mtime_ns}"

    def exists(self, path: str) -> bool:
        """True if the file exists."""
        return (self.root / path).is_file()

    def read(self, path: str) -> bytes | None:
        """The file's bytes, None if there is no such file.

        Raises:
            UserError: not a regular file, or larger than :data:`LARGEST_BYTES`.
        """
        try:
            with self.open(path) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size > LARGEST_BYTES:
                    what = f"{size:,} bytes, more than any file of a store has ({LARGEST_BYTES:,})"
                    raise UserError(what, where=self.show(path), fix="Remove it.")
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, path: str) -> BinaryIO:
        """A regular file, open for reading.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it is no regular file, or a link that leads nowhere: a pipe or a device could block for ever.
        """
        return open_regular(self.root / path)

    def build(
        self,
        temporary: str,
        make: Callable[[Path], T],
        *,
        name: Callable[[T], str],
        check: Callable[[str], None],
    ) -> tuple[str, T]:
        """A file that is too large for memory: made under a temporary name, checked, flushed, then renamed.

        Args:
            temporary: name to write under first, in the folder of the file.
            make: writes the file and returns what ``name`` needs.
            name: path of the file, from what ``make`` returned.
            check: raises if the written file is not as it should be.

        Raises:
            UserError: the disk is full or the folder cannot be written; nothing is left behind.
        """
        draft = self.root / temporary
        try:
            _make_folder(draft.parent)
            try:
                made = make(draft)
                with draft.open("rb") as stream:
                    os.fsync(stream.fileno())
                target = name(made)
                check(target)
                os.replace(draft, self.root / target)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            _sync_folder(draft.parent)
        except OSError as error:
            raise _explain(error, draft.parent, 0) from error
        return target, made

    def remove_empty(self, top: str) -> None:
        """Remove a folder and those below it, as far as they hold nothing."""
        for folder, _, _ in os.walk(self.root / top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def write(self, path: str, data: bytes, *, temporary: str) -> None:
        """Make ``path`` hold ``data``, all of it or nothing, and survive a power cut afterwards.

        Args:
            temporary: name to write under first; in the same folder, so that renaming is atomic.

        Raises:
            UserError: the disk is full or the folder cannot be written; nothing is left behind.
        """
        target, draft = self.root / path, self.root / temporary
        try:
            stream = self._begin(draft)
            try:
                with stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(draft, target)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            with contextlib.suppress(FileNotFoundError):  # packed already, and the empty folder removed
                _sync_folder(target.parent)
        except OSError as error:
            raise _explain(error, target.parent, len(data)) from error

    @staticmethod
    def _begin(draft: Path) -> BinaryIO:
        """A new file in a folder that is made as needed; a process that packs may remove the empty folder meanwhile."""
        for _ in range(_FOLDER_TRIES):
            with contextlib.suppress(FileNotFoundError):
                _make_folder(draft.parent)
                return draft.open("xb")
        raise FileNotFoundError(errno.ENOENT, "the folder was removed again and again", str(draft.parent))

    def size(self, path: str) -> int | None:
        """Bytes of a file, None if there is no such file."""
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def modified(self, path: str) -> float | None:
        """Time when a file was last written, seconds since 1970; None if unknown."""
        try:
            return (self.root / path).stat().st_mtime
        except FileNotFoundError:
            return None

    def move(self, path: str, to: str) -> None:
        """Rename a file; one that is already gone is no error."""
        _make_folder((self.root / to).parent)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.root / path, self.root / to)

    def remove(self, path: str) -> None:
        """Remove a file; one that is already gone is no error."""
        (self.root / path).unlink(missing_ok=True)


class RemoteFiles:
    """A folder on an fsspec file system.

    Args:
        filesystem: an ``fsspec.AbstractFileSystem``.
        root: path of the folder on it.
        url: the URL as the user gave it.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.url = url.rstrip("/")

    def show(self, path: str) -> str:
        """The path as people know it."""
        return f"{self.url}/{path}"

    def local_folder(self, name: str) -> Path | None:
        """None: nothing on a remote file system can be locked by this machine's kernel."""
        return None

    def listing(self, top: str) -> Iterator[tuple[str, str]]:
        """Folder (relative to the root) and name of every file below ``top``."""
        for folder, name, _ in self.stamps(top):
            yield folder, name

    def stamps(self, top: str) -> Iterator[tuple[str, str, str]]:
        """Folder, name and stamp of every file below ``top``: size, and entity tag or times, whichever the file system
        reports.
        """
        self.filesystem.invalidate_cache()  # other writers are at work
        start = f"{self.root}/{top}"
        if not self.filesystem.exists(start):
            return
        for path, about in self.filesystem.find(start, detail=True).items():
            folder, _, name = str(path).rpartition("/")
            told = [about.get("size"), *(str(about[k]) for k in _TELLING if about.get(k) is not None)]
            yield top + folder[folder.rindex(f"/{top}") + 1 + len(top) :], name, " ".join(map(str, told))

    def open(self, path: str) -> BinaryIO:
        """A file, open for reading in parts.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return cast("BinaryIO", self.filesystem.open(f"{self.root}/{path}", "rb"))

    def exists(self, path: str) -> bool:
        """True if the file exists."""
        return bool(self.filesystem.exists(f"{self.root}/{path}"))

    def read(self, path: str) -> bytes | None:
        """The file's bytes, None if there is no such file."""
        try:
            return bytes(self.filesystem.cat_file(f"{self.root}/{path}"))
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes, *, temporary: str) -> None:
        """Make ``path`` hold ``data``: upload under a temporary name, then rename.

        Raises:
            UserError: the file system refuses.
        """
        draft = f"{self.root}/{temporary}"
        try:
            self.filesystem.makedirs(draft.rpartition("/")[0], exist_ok=True)
            try:
                self.filesystem.pipe_file(draft, data)
                self.filesystem.mv(draft, f"{self.root}/{path}")
            except BaseException:
                if self.filesystem.exists(draft):
                    self.filesystem.rm_file(draft)
                raise
        except OSError as error:
            raise _explain(error, self.show(path.rpartition("/")[0]), len(data)) from error

    def size(self, path: str) -> int | None:
        """Bytes of a file, None if there is no such file."""
        try:
            return int(self.filesystem.size(f"{self.root}/{path}"))
        except FileNotFoundError:
            return None

    def modified(self, path: str) -> float | None:
        """Time when a file was last written, seconds since 1970; None if unknown."""
        try:
            return float(self.filesystem.modified(f"{self.root}/{path}").timestamp())
        except (FileNotFoundError, NotImplementedError):
            return None

    def move(self, path: str, to: str) -> None:
        """Rename a file; one that is already gone is no error."""
        self.filesystem.makedirs(f"{self.root}/{to}".rpartition("/")[0], exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.mv(f"{self.root}/{path}", f"{self.root}/{to}")

    def remove(self, path: str) -> None:
        """Remove a file; one that is already gone is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.root}/{path}")


def open_files(root: str | Path) -> LocalFiles | RemoteFiles:
    """The files under a local folder or an fsspec URL.

    Raises:
        UserError: the protocol is unknown or its package is not installed, or the folder is a file.
    """
    text = str(root)
    if isinstance(root, Path) or "://" not in text:
        return _local(Path(root))
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        filesystem, path = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"this kind of store cannot be opened: {error}",
            where=text,
            fix="Install its package, or use a local folder.",
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        return _local(Path(path))
    return RemoteFiles(filesystem, path, text)


def _local(root: Path) -> LocalFiles:
    if root.is_file():
        raise UserError("a file is in the place of the results folder", where=str(root), fix="Name a folder.")
    return LocalFiles(root)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably: a file in a folder that a power cut removes is lost too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, folder: Path | str, wanted_bytes: int) -> UserError:
    if error.errno not in _FULL:
        return UserError(
            f"cannot be written: {error.strerror or error}",
            where=str(folder),
            fix="Make the folder writable or use another results folder.",
        )
    if error.errno == errno.EDQUOT:
        what = f"the disk quota is used up: {wanted_bytes:,} bytes were wanted"
    else:
        free = f", {shutil.disk_usage(folder).free:,} are free" if isinstance(folder, Path) and folder.is_dir() else ""
        what = f"the disk is full: {wanted_bytes:,} bytes were wanted{free}"
    return UserError(
        what,
        where=str(folder),
        fix="Free space there or use another results folder, then run the same command again: "
        "finished cells are kept and not repeated.",
    )
