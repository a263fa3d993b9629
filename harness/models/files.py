"""The files of a model folder that can change a number, and the digest of their bytes: the identity of a local model.

Any other source of a model (an adapter, a single-file checkpoint) builds its identity with the same
:func:`files_digest`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.bounded import LFS, check_shape, open_regular, parse_json, read_json
from harness.digests import digest
from harness.errors import UserError
from harness.file_digests import FileDigests

PREFIX = "sha256:"
"""Begins a revision that is a digest of bytes. A bare digest, in older records, is one of names and file sizes."""

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".npz")
_NOT_READ = frozenset({"trainer_state.json", "model_index.json", "modelcard.json", "all_results.json"})
_TEXTS = (".md", ".rst", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf", ".log", ".lock", ".tmp")
TEMPLATES = "additional_chat_templates"


def source_files(folder: Path, *, where: str = "") -> dict[str, Path]:
    """Name (relative to the folder) to path of every file that loading the model or its tokenizer may read.

    That is every file of the folder, shards that an index names in subfolders, and additional chat templates.
    Left out are hidden files, descriptions, other files of a training run, and weights in other formats than
        safetensors, which are never read. A file that is not known here is kept: too long a list costs a run, too
    short a list gives a wrong number.

    Raises:
        UserError: there are no safetensors weights; an index names a file that is missing or outside the folder; the
            folder is an adapter's.
    """
    shown = where or str(folder)
    found = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and not _left_out(path.name)
    }
    if "adapter_config.json" in found:
        raise UserError(
            f"the model at {str(folder)!r} is an adapter on another model",
            where=where,
            fix="Merge it into its base and save the merged model, or name the base.",
        )
    for index in [name for name in found if name.endswith(".safetensors.index.json")]:
        found |= _shards(folder, found[index], shown)
    if not any(name.endswith(".safetensors") for name in found):
        raise UserError(
            f"the model at {str(folder)!r} has no safetensors weights",
            where=where,
            fix="Only safetensors are read: save it again with save_pretrained.",
        )
    if (folder / TEMPLATES).is_dir():
        found |= {f"{TEMPLATES}/{path.name}": path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    return dict(sorted(found.items()))


def _left_out(name: str) -> bool:
    lower = name.lower()
    return (
        lower in _NOT_READ
        or lower.endswith((*_OTHER_WEIGHTS, *_TEXTS))
        or lower.split(".")[0] in ("license", "licence", "readme", "notice", "use_policy")
    )


class _WeightIndex(BaseModel):
    """``*.safetensors.index.json``: tensor to file."""

    weight_map: dict[str, str]


MAX_INDEX_BYTES = 64 * 2**20


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for a file, or with a NUL
        return False


def _shards(folder: Path, index: Path, where: str) -> dict[str, Path]:
    """The files that an index of weights names.

    Raises:
        UserError: the index is no index, or names what is not there or not in the folder.
    """
    try:
        found = check_shape(read_json(index, most=MAX_INDEX_BYTES), _WeightIndex, where=where)
    except (OSError, UserError) as error:
        why = error.what if isinstance(error, UserError) else error.strerror
        raise UserError(f"{index.name} is not an index of weights: {why}", where=where) from None
    paths = {name: folder / name for name in sorted(set(found.weight_map.values()))}
    for name, path in paths.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{index.name} names {name!r}, which is outside the model's folder", where=where)
        if not _is_file(path):
            raise UserError(f"{index.name} names {name!r}, which does not exist", where=where, fix="Copy it again.")
    return paths


def files_digest(files: Mapping[str, Path], digests: FileDigests, *, more: Mapping[str, object] | None = None) -> str:
    """The revision of a model source: ``sha256:`` and 32 hexadecimal digits over the names and bytes of its files.

    Args:
        files: name to path; names are part of the digest, their folder is not.
        digests: reads (or remembers) the bytes.
        more: anything else that decides what is loaded, as plain JSON.

    Raises:
        UserError: a file cannot be read.
    """
    content: dict[str, Any] = {name: _of(path, digests) for name, path in files.items()}
    return PREFIX + digest({"files": content, **(more or {})})[:32]


def weights_sha256(files: Mapping[str, Path], digests: FileDigests) -> str | None:
    """Digest over the weight files alone (safetensors and GGUF); None if there are none."""
    weights = {
        name: _of(path, digests) for name, path in files.items() if name.lower().endswith((".safetensors", ".gguf"))
    }
    return digest(weights) if weights else None


def _of(path: Path, digests: FileDigests) -> str:
    try:
        return digests.of(path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


def safetensors_elements(path: Path, *, where: str = "") -> int:
    """Elements of all tensors of a safetensors file.

    Raises:
        UserError: the file is a git-lfs pointer, empty, cut off, or no safetensors file.
    """
    return sum(math.prod(shape) for shape in safetensors_shapes(path, where=where).values())


def safetensors_shapes(path: Path, *, where: str = "") -> dict[str, tuple[int, ...]]:
    """Tensor to shape of a safetensors file, from its header (its length in 8 bytes, then JSON).

    Raises:
        UserError: the file is a git-lfs pointer, empty, cut off, or no safetensors file.
    """
    shown = where or str(path)

    def wrong(what: str, fix: str = "Copy or download it again.") -> UserError:
        return UserError(f"{path.name} {what}", where=shown, fix=fix)

    try:
        size = path.stat().st_size
        with open_regular(path, where=shown) as stream:
            start = stream.read(8)
            if start == LFS[:8]:
                raise wrong("is a git-lfs pointer and holds no weights", "Run: git lfs pull")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise wrong(f"is no safetensors file, or cut off: it has {size:,} bytes")
            header = parse_json(stream.read(length).decode(), where=shown)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in tensors.items()}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except UserError as error:
        raise wrong(f"is no safetensors file: its header cannot be read ({error.what})") from None
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise wrong(f"is no safetensors file: its header cannot be read ({type(error).__name__})") from None
    if not tensors:
        raise wrong("holds no tensor", "Save the model again with save_pretrained.")
    if end > size - 8 - length or any(n < 0 for shape in shapes.values() for n in shape):
        raise wrong(f"is cut off: its tensors need {end + 8 + length:,} bytes and {size:,} are there")
    return shapes
