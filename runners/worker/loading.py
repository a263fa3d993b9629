"""Reading the base model: what a folder brings besides weights is decided here, and written into the record.

``from_pretrained`` reads more than weights. Decided for every cell alike, whatever the folder says:

- weights that the files lack are an error, except a classification head (and pooler), which is drawn from the seed;
- weights of layers that the configuration does not have are an error;
- ``generation_config.json`` is not used: decoding is the cell's (``evaluation.decoding``); what it asked for is a fact;
- a classification head in the files is used only for the task's own classes;
- a classifier's ``pad_token_id`` is its tokenizer's: a decoder reads its answer at the last token that is not padding;
- a language model must not see later tokens (:func:`check_causal`), and all ids of the data must have embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import CheckFailed, Unsupported, UserError
from harness.models import conv1d, hub, skeleton, sources
from runners.worker.context import Context
from runners.worker.encoding import encode_prompt

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedModel

SHOWN = 4
CAUSAL_TOKENS = 16
CAUSAL_TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Change of earlier logits, relative to their largest, that another last token may cause: rounding alone. An encoder
changes them by 1e-3 (random weights) and more (trained ones)."""
CAUSAL_TOLERANCE_QUANTIZED = 1e-1
_HEAD = re.compile(
    r"(^|\.)(pooler|classifier|pre_classifier|score|classification_head|out_proj|sequence_summary|logits_proj)(\.|$)"
)
_LAYER = re.compile(r"(^|\.)(layers?|h|blocks?)\.\d+\.")
"""A weight of one of the body's layers."""
_UNNAMED = re.compile(r"LABEL_\d+")


def from_pretrained(ctx: Context, path: str, **kwargs: Any) -> Any:
    """``from_pretrained`` with the cell's settings; safetensors only, remote code only where the sweep says so.

    Raises:
        UserError: the files do not hold all weights, hold others, or have a head for other classes.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    cell = ctx.job.cell["model"]
    common: dict[str, Any] = {
        "dtype": getattr(torch, cell["dtype"]),
        "attn_implementation": cell["attention"],
        "use_safetensors": True,
        "trust_remote_code": cell["trust_remote_code"],
        **kwargs,
    }
    if path == ctx.path:
        common["revision"] = hub_revision(ctx)
    if ctx.device.type == "cuda":
        common["device_map"] = {"": 0}
    classes = ctx.task.definition.labels if ctx.kind == "sequence-classification" else ()
    labels: dict[str, object] = {}
    if classes:
        labels = {
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {label: i for i, label in enumerate(classes)},
        }
    if skeleton.is_bare(path):
        settings = {"dtype": common["dtype"], "attention": cell["attention"], **labels}
        model = skeleton.build(path, ctx.kind, device=ctx.device, **settings)
        conv1d.to_linear(model)
        return model
    torch.manual_seed(ctx.seed)
    auto = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(path, output_loading_info=True, **common, **labels)
    except ValueError as error:
        if "attn_implementation" not in str(error) and "attention implementation" not in str(error):
            raise
        raise Unsupported(
            f"{cell['id']} ({type(error).__name__}) does not run with 'attention: {cell['attention']}'; set "
            "'attention: eager' in the sweep"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            f"weights of {cell['id']} have other shapes than its configuration says"
            + (f", or its head is for other classes than {', '.join(classes)}" if classes else ""),
            fix="Use a checkpoint without a head, or one for the task's classes.",
        ) from error
    conv1d.to_linear(model)
    facts: dict[str, Any] = {"fresh": sorted(info["missing_keys"])}
    check_weights(model, info, classes, cell["id"])
    if classes:
        facts["head"] = check_head(_files(ctx, path), classes, fresh=info["missing_keys"], name=cell["id"])
    facts |= _own_settings(ctx, model, classify=bool(classes))
    ctx.facts["loading"] = facts
    return model


def hub_revision(ctx: Context) -> str | None:
    """The revision to ask the Hub for; None for files on this machine, whose revision is a digest of ours."""
    revision: str | None = ctx.job.cell["model"]["revision"]
    return None if Path(ctx.path).is_dir() else revision


# --- weights and head ------------------------------------------------------------------------------
def check_weights(model: PreTrainedModel, info: Mapping[str, Any], classes: Sequence[str], name: str) -> None:
    """Weights that are not in the files were drawn at random, and files may hold more layers than were built.

    Raises:
        UserError: with the first names.
    """
    missing = sorted(k for k in info["missing_keys"] if not (classes and _in_head(k)))
    if missing:
        raise UserError(
            f"the files of {name} hold no weights for {_some(missing)}; they would be random numbers",
            fix="Save the whole model again with save_pretrained, or correct config.json.",
        )
    quantized = getattr(model.config, "quantization_config", None) is not None
    unused = sorted(k for k in info["unexpected_keys"] if _LAYER.search(k))
    if unused and not quantized:
        raise UserError(
            f"the files of {name} hold weights that its configuration has no place for: {_some(unused)}",
            fix="Correct config.json: the number of layers, or the model type.",
        )


def check_head(config: Mapping[str, object], classes: Sequence[str], *, fresh: set[str], name: str) -> str:
    """The head's origin: drawn from the seed, or read from the files for the same classes.

    Raises:
        UserError: it was trained for other classes, or for the same ones in another order.
    """
    if any(_in_head(key) and "pooler" not in key for key in fresh):
        return "drawn from the seed"
    named = config.get("id2label")
    found = [str(named[key]) for key in sorted(named, key=int)] if isinstance(named, Mapping) else []
    if not found or all(_UNNAMED.fullmatch(label) for label in found):
        return "from the files; its classes have no names and are taken in the task's order"
    if [label.casefold() for label in found] != [label.casefold() for label in classes]:
        raise UserError(
            f"the head of {name} was trained for the classes {', '.join(found)}, and the task has {', '.join(classes)}",
            fix="Use a checkpoint without a head, or name and order the task's labels as the head's.",
        )
    return "from the files, for the same classes"


def _files(ctx: Context, path: str) -> dict[str, object]:
    """The folder's own ``config.json``, before the task's labels replaced those in it."""
    folder: Path | None = Path(path)
    if folder is not None and not folder.is_dir():
        folder = hub.snapshot(path, str(ctx.job.cell["model"]["revision"]))
    file = folder / "config.json" if folder is not None else None
    return sources.read_config(file) if file is not None and file.is_file() else {}


def _in_head(name: str) -> bool:
    """Whether a weight is of the part behind a classifier's body, which is drawn where the files lack it."""
    return bool(_HEAD.search(name)) and not _LAYER.search(name)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- settings of the folder ------------------------------------------------------------------------
def _own_settings(ctx: Context, model: PreTrainedModel, *, classify: bool) -> dict[str, Any]:
    """Replace what the folder says about decoding and padding by the harness's own; what was replaced."""
    from transformers import GenerationConfig

    tokenizer, facts = ctx.tokenizer, {}
    asked = getattr(model, "generation_config", None)
    if asked is not None:
        plain = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        said = json.loads(asked.to_json_string(use_diff=True))
        own = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
        own |= {"use_cache", "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"}
        ignored = {k: v for k, v in said.items() if k not in own and v != getattr(plain, k, None)}
        if ignored:
            facts["generation_config_not_used"] = ignored
        model.generation_config = plain
    said_pad = model.config.pad_token_id
    if said_pad is None or (classify and said_pad != tokenizer.pad_token_id):
        model.config.pad_token_id = tokenizer.pad_token_id
        text = model.config.get_text_config()
        if text is not model.config:
            text.pad_token_id = tokenizer.pad_token_id
        if said_pad is not None:
            facts["pad_token_id"] = {"configuration": said_pad, "used": tokenizer.pad_token_id}
    return facts


# --- the loaded model against its tokenizer and task -----------------------------------------------
def check_loaded(ctx: Context) -> None:
    """Checks that need the loaded model; called once, outside every measured stage.

    Raises:
        UserError: tokens without a row in the embedding; scores that are not finite.
        Unsupported: a language model that sees later tokens.
    """
    check_token_ids(ctx)
    if ctx.kind == "causal-lm":
        check_causal(ctx)


def check_token_ids(ctx: Context) -> None:
    """Every id that the data or the harness may use must have a row in the embedding.

    Raises:
        UserError: with the token, or the item that holds it.
    """
    embedding = ctx.model.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", None) or int(embedding.weight.shape[0])
    tokenizer = ctx.tokenizer
    fix = "Resize the embeddings (model.resize_token_embeddings(len(tokenizer))) and save the model again."
    for name in ("pad", "bos", "eos"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None and token >= rows:
            text = getattr(tokenizer, f"{name}_token")
            raise UserError(
                f"the {name} token {text!r} has the id {token}, and the model embeds {rows} tokens", fix=fix
            )
    if len(tokenizer) <= rows:
        return
    for split in (ctx.splits.train, ctx.splits.validation, ctx.splits.test):
        for item in split:
            for text in (item.prompt, item.answer, *item.choices):
                ids = tokenizer(text)["input_ids"]
                if ids and max(ids) >= rows:
                    word = tokenizer.convert_ids_to_tokens(max(ids))
                    what = f"holds the token {word!r} with the id {max(ids)}, and the model embeds {rows} tokens"
                    raise UserError(f"the item {item.id} {what}", fix=fix)


def check_causal(ctx: Context) -> None:
    """Another last token must leave all earlier logits as they are.

    Raises:
        Unsupported: they change: the model reads in both directions, so a likelihood would see its own answer.
        CheckFailed: ``finite-scores``: the logits are not finite numbers.
    """
    items = ctx.splits.train or ctx.splits.test or ctx.splits.validation
    tokenizer = ctx.tokenizer
    ids = [t for item in items[:CAUSAL_TOKENS] for t in encode_prompt(tokenizer, item.prompt + item.answer)]
    ids = (ids * CAUSAL_TOKENS)[:CAUSAL_TOKENS]
    other = next((t for t in ids if t != ids[-1]), (ids[-1] + 1) % len(tokenizer))
    logits = []
    with torch.inference_mode():
        for last in (ids[-1], other):
            row = torch.tensor([[*ids[:-1], last]], device=ctx.device)
            logits.append(ctx.model(input_ids=row).logits[0, -len(ids) : -1].float())
    if not all(bool(torch.isfinite(found).all()) for found in logits):
        raise CheckFailed("finite-scores", "the logits of the base model are not finite: its weights may be damaged")
    moved = float((logits[0] - logits[1]).abs().max() / logits[0].abs().max().clamp_min(1e-12))
    ctx.facts["causal"] = {"earlier_logits_moved": moved}
    allowed = CAUSAL_TOLERANCE[getattr(torch, ctx.job.cell["model"]["dtype"])]
    if ctx.job.cell["quantization"]["name"] != "none":
        allowed = max(allowed, CAUSAL_TOLERANCE_QUANTIZED)
    if moved > allowed:
        raise Unsupported(
            f"{ctx.job.cell['model']['id']} is no causal language model: another last token changes the scores of "
            f"earlier ones by {moved:.2g}, so it would see the answer that it is asked for"
        )
