"""Segments: immutable Parquet files that hold many files of a store, each with its bytes and their SHA-256.

A segment has one row a file (:data:`SCHEMA`): its path below the store's root, its size, the SHA-256 of its bytes and
the bytes themselves, compressed with zstd over groups of neighbouring files. Its own name is the digest of that list,
so a segment is never edited: packing more files writes another one. Nothing read from a segment is used before it
hashes to the digest in the list, and the list to the segment's name.

:class:`StoreFiles` shows the loose files of a store and the packed ones as one set of files.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import UserError
from harness.store.blob_storage import LocalFiles, RemoteFiles

FOLDER = "segments"
FORMAT = b"1"
GROUP_BYTES = 16 * 2**20
"""Bytes of files compressed together. A reader of one file unpacks one group."""
LEVEL = 19
"""Compression of what is packed once and read often."""
BATCH_LEVEL = 1
"""Compression of a batch that is appended: a hundred times as fast, and packing compresses it again."""
CACHE_BYTES = 64 * 2**20
"""Unpacked groups kept in memory by one open store."""

_NAME = re.compile(r"^[0-9a-f]{32}\.parquet$")
_MARK = b"peft_matrix_segment"
_RESTORE = (
    "Put a good copy of it in its place, or run `peft-matrix results unpack --salvage`, which saves what can be read."
)


class DamagedSegment(UserError):
    """A segment whose bytes are not those that were packed. Nothing of it is used."""


@dataclass(frozen=True)
class Damage:
    """A file of a store that could not be read.

    Attributes:
        path: where it is now (in ``quarantine/`` if it was moved there).
        reason: what is wrong with it.
    """

    path: str
    reason: str


class SegmentEntry(NamedTuple):
    """A file in a segment: path below the store's root, bytes, SHA-256 (hex) of them."""

    path: str
    size: int
    sha256: str


_PATH = re.compile(r"(?:records/[\w-]+|samples)/[\w.-]+", re.ASCII)


def name_of(rows: Iterable[SegmentEntry]) -> str:
    """Path of the segment that holds these files: the digest of the list, in the order of the paths."""
    listed = hashlib.sha256("".join(f"{r.path}\t{r.size}\t{r.sha256}\n" for r in sorted(rows)).encode()).hexdigest()
    return f"{FOLDER}/{listed[:32]}.parquet"


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("content", pa.large_binary(), nullable=False),
        ]
    )


def write(target: Path, files: Iterable[tuple[str, bytes]], *, level: int = LEVEL) -> list[SegmentEntry]:
    """Write files into a new segment at ``target``, group by group, so that few are in memory at once.

    Args:
        target: a file that does not exist yet.
        files: path and bytes; neighbours are compressed together. A new top folder begins a new group.
        level: of zstd. The segment's name does not depend on it.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema().with_metadata({_MARK: FORMAT})
    rows: list[SegmentEntry] = []
    with parquet.ParquetWriter(
        target,
        schema,
        compression="zstd",
        compression_level=level,
        use_dictionary=False,
        write_statistics=False,
        data_page_size=4 * GROUP_BYTES,
        write_page_checksum=True,
    ) as writer:
        for group in _groups(files):
            new = [SegmentEntry(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in group]
            columns = [*map(list, zip(*new, strict=True)), [data for _, data in group]]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(new))
            rows += new
    return rows


def _groups(files: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    group: list[tuple[str, bytes]] = []
    size = 0
    for path, data in files:
        if group and (size + len(data) > GROUP_BYTES or path.split("/")[0] != group[0][0].split("/")[0]):
            yield group
            group, size = [], 0
        group.append((path, data))
        size += len(data)
    if group:
        yield group


class Segment:
    """One segment, its list of files checked against its name.

    Args:
        path: below the store's root.
        show: the path as people know it.
        open_file: gives a readable, seekable file.

    Raises:
        DamagedSegment: it is not a segment, or its list does not hash to its name.
        FileNotFoundError: it is no longer there.
    """

    def __init__(self, path: str, show: str, open_file: Callable[[], object]) -> None:
        self.path, self._show, self._open = path, show, open_file
        self.rows: list[SegmentEntry] = []
        self._at: dict[str, tuple[int, int]] = {}  # path to row group and row in it
        with self._parquet() as file:
            about = file.schema_arrow.metadata or {}
            if about.get(_MARK) != FORMAT or file.schema_arrow.names != _schema().names:
                raise self._damaged("it is not a segment of a format this version knows")
            for group in range(file.metadata.num_row_groups):
                listed = self._columns(file, group, ["path", "size", "sha256"])
                for at, row in enumerate(map(SegmentEntry, *listed)):
                    self._at[row.path] = (group, at)
                    self.rows.append(row)
        if len(self._at) != len(self.rows) or name_of(self.rows) != path or not all(map(_sane, self._at)):
            raise self._damaged("its list of files does not match its name")
        self.by_path = {row.path: row for row in self.rows}

    def _damaged(self, why: str) -> DamagedSegment:
        return DamagedSegment(f"the segment is damaged: {why}", where=self._show, fix=_RESTORE)

    def _parquet(self) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        source = self._open()
        try:
            return parquet.ParquetFile(source, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(_first_line(error)) from error

    def _columns(self, file: Any, group: int, names: list[str]) -> list[list[Any]]:
        import pyarrow as pa

        try:
            table = file.read_row_group(group, columns=names, use_threads=False)
            return [table.column(name).to_pylist() for name in names]
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self._damaged(_first_line(error)) from error

    @property
    def groups(self) -> int:
        """Number of groups."""
        return 1 + max((group for group, _ in self._at.values()), default=-1)

    def group_of(self, path: str) -> int:
        """Number of the group a file is in."""
        return self._at[path][0]

    def group(self, number: int) -> dict[str, bytes]:
        """Path and bytes of every file of a group, each checked against its digest.

        Raises:
            DamagedSegment: the bytes of a file are not those of the list.
            FileNotFoundError: the segment is no longer there.
        """
        found, bad = self.salvage(number)
        if bad:
            raise self._damaged(bad[0])
        return found

    def salvage(self, number: int) -> tuple[dict[str, bytes], list[str]]:
        """The files of a group that hash to their digests, and what is wrong with the others."""
        try:
            with self._parquet() as file:
                paths, contents = self._columns(file, number, ["path", "content"])
        except DamagedSegment as error:
            return {}, [error.what.removeprefix("the segment is damaged: ")]
        found, bad = {}, []
        for path, data in zip(paths, contents, strict=True):
            row = self.by_path.get(path)
            if row is None or hashlib.sha256(data).hexdigest() != row.sha256:
                bad.append(f"the bytes of {path} do not match their digest")
            else:
                found[path] = data
        return found, bad

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Path and bytes of every file, checked, group by group."""
        for number in range(self.groups):
            yield from self.group(number).items()


def _sane(path: str) -> bool:
    """Only records and samples are packed, and no path leads out of the store."""
    return _PATH.fullmatch(path) is not None and ".." not in path


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


class StoreFiles:
    """The files of a store, loose or packed, as one. Writing makes loose files; what is packed does not change.

    Args:
        loose: the files as they are on the disk or the remote file system.
    """

    def __init__(self, loose: LocalFiles | RemoteFiles) -> None:
        self.loose = loose
        self._segments: dict[str, Segment] = {}
        self._folders: dict[str, dict[str, Segment]] = {}  # folder to name to segment
        self._cache: OrderedDict[tuple[str, int], dict[str, bytes]] = OrderedDict()
        self._cached_bytes = 0

    # --- segments ------------------------------------------------------------------------------
    def segments(self) -> list[Segment]:
        """The segments of the store now, in the order of their names.

        Raises:
            DamagedSegment: one of them is damaged.
        """
        names = self.segment_paths()
        if names != list(self._segments):
            now: dict[str, Segment] = {}
            for path in names:
                try:
                    now[path] = self._segments.get(path) or self._open(path)
                except FileNotFoundError:  # packed again since the folder was listed: the files are in another one
                    continue
            self._segments, self._folders = now, {}
            for segment in now.values():
                for path in segment.by_path:
                    folder, _, name = path.rpartition("/")
                    self._folders.setdefault(folder, {})[name] = segment
        return list(self._segments.values())

    def segment_paths(self) -> list[str]:
        """Paths of all segment files, sorted, damaged ones included."""
        return sorted(f"{folder}/{name}" for folder, name in self.loose.listing(FOLDER) if _NAME.match(name))

    def salvageable(self, damaged: list[Damage]) -> list[Segment]:
        """The segments whose list can be trusted; the others are added to ``damaged``."""
        found = []
        for path in self.segment_paths():
            try:
                found.append(self._open(path))
            except DamagedSegment as error:
                damaged.append(Damage(self.loose.show(path), error.what))
        return found

    def _open(self, path: str) -> Segment:
        return Segment(path, self.loose.show(path), lambda: self.loose.open(path))

    def packed(self, path: str) -> SegmentEntry | None:
        """The row of a packed file, as of the last reading of the segments; None for any other path."""
        segment = self._segment_of(path)
        return segment.by_path[path] if segment is not None else None

    def in_reading_order(self, paths: Iterable[str]) -> list[str]:
        """The paths in an order in which no part of a segment is read twice: loose files, then segment by segment."""

        def place(path: str) -> tuple[str, int]:
            segment = self._segment_of(path)
            return ("", 0) if segment is None else (segment.path, segment.group_of(path))

        return sorted(paths, key=place)

    def _segment_of(self, path: str) -> Segment | None:
        folder, _, name = path.rpartition("/")
        return self._folders.get(folder, {}).get(name)

    def _read_packed(self, path: str) -> bytes | None:
        segment = self._segment_of(path)
        if segment is None:
            return None
        where = (segment.path, segment.group_of(path))
        group = self._cache.get(where)
        if group is None:
            try:
                group = segment.group(where[1])
            except FileNotFoundError:
                return None
            self._cache[where] = group
            self._cached_bytes += sum(map(len, group.values()))
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= sum(map(len, self._cache.popitem(last=False)[1].values()))
        self._cache.move_to_end(where)
        return group[path]

    # --- the files -----------------------------------------------------------------------------
    def show(self, path: str) -> str:
        """The path as people know it; for a packed file, with its segment."""
        segment = self._segment_of(path)
        return self.loose.show(path) if segment is None else f"{self.loose.show(segment.path)}: {path}"

    def local_folder(self, name: str) -> Path | None:
        """A folder below the root that the kernel can lock files in; None on a remote file system."""
        return self.loose.local_folder(name)

    def listing(self, top: str) -> Iterator[tuple[str, str]]:
        """Folder (relative to the root) and name of every file below ``top``, loose ones first.

        Raises:
            UserError: a folder may not be read.
            DamagedSegment: a segment is damaged.
        """
        for folder, name, _ in self._listed(top, ((folder, name, "") for folder, name in self.loose.listing(top))):
            yield folder, name

    def stamps(self, top: str) -> Iterator[tuple[str, str, str]]:
        """Folder, name and stamp of every file below ``top``; that of a packed file is its digest."""
        yield from self._listed(top, self.loose.stamps(top))

    def _listed(self, top: str, loose: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
        # The segments are looked at last: a file packed meanwhile is then seen twice at worst, never missed.
        found = list(loose)
        self.segments()
        for folder, name, stamp in found:
            if name not in self._folders.get(folder, ()):
                yield folder, name, stamp
        for folder, names in self._folders.items():
            if folder == top or folder.startswith(f"{top}/"):
                for name, segment in names.items():
                    yield folder, name, f"packed {segment.by_path[f'{folder}/{name}'].sha256}"

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        if self.packed(path) is not None or self.loose.exists(path):
            return True
        self.segments()
        return self.packed(path) is not None

    def read(self, path: str) -> bytes | None:
        """The file's bytes, None if there is no such file.

        Raises:
            UserError: it is not a regular file.
            DamagedSegment: the file is packed and its bytes do not match their digest.
        """
        for _ in range(2):  # a file may be packed or unpacked between the two looks
            data = self._read_packed(path)
            if data is None:
                data = self.loose.read(path)
            if data is not None:
                return data
            self.segments()
        return None

    def write(self, path: str, data: bytes, *, temporary: str) -> None:
        """Make a loose file hold ``data`` (:meth:`harness.store.blob_storage.LocalFiles.write`)."""
        self.loose.write(path, data, temporary=temporary)

    def size(self, path: str) -> int | None:
        """Bytes of a file, None if there is no such file."""
        row = self.packed(path)
        return row.size if row is not None else self.loose.size(path)

    def modified(self, path: str) -> float | None:
        """When a file, or the segment that holds it, was last written, seconds since 1970; None if not known."""
        segment = self._segment_of(path)
        return self.loose.modified(path if segment is None else segment.path)

    def move(self, path: str, to: str) -> None:
        """Rename a loose file.

        Raises:
            UserError: the file is packed.
        """
        if self.packed(path) is not None:
            raise UserError("a packed file cannot be moved", where=self.show(path))
        self.loose.move(path, to)

    def remove(self, path: str) -> None:
        """Remove a loose file; one that is already gone is no error. What is packed is not touched."""
        self.loose.remove(path)
