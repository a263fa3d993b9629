"""Trained weights that a sweep keeps, and their export: a peft adapter, a merged model or a GGUF file, with a card.

A kept cell is a folder ``adapters/KEY`` beside the records: ``saved/`` is what its method wrote, ``kept.json`` the
score and the job, from which the model can be built again. A running cell writes into ``incoming/``, so that a run that
fails leaves what an earlier one kept.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from harness.errors import UserError, did_you_mean
from harness.record import CellView, Reading, Record
from runners.worker.job import Job, write_atomically
from runners.workspace import Workspace

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from transformers import PreTrainedModel

    from runners.worker.context import Context

Form = Literal["adapter", "merged", "gguf"]
FORMS: tuple[Form, ...] = get_args(Form)
SAVED, INCOMING, NOTE, MANIFEST, CARD = "saved", "incoming", "kept.json", "export.json", "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SCORES = {
    "accuracy": True,
    "macro_f1": True,
    "matthews": True,
    "exact_match": True,
    "token_f1": True,
    "rouge_l": True,
    "bleu": True,
    "pass_at_1": True,
    "reward_accuracy": True,
    "bits_per_byte": False,
    "answer_nll": False,
}
"""Scores on a card, whether higher is better."""
DECIDES = {"validation_nll": False, **SCORES}
"""Under ``keep: best``, the first of these that a record has: on validation data where the task has any, so that the
printed test score is not the maximum of several."""
SHARES = ("accuracy", "merged_accuracy", "pass_at_1")
COSTS = ("train_s", "energy_gross_j", "cpu_package_j", "trainable_parameters", "adapter_bytes")
LARGEST_ERROR = 1e-3
"""Relative logit difference between a merged model in memory and read back by transformers, float32."""
TASK_TYPES = {"sequence-classification": "text-classification"}


# --- keeping ---------------------------------------------------------------------------------------
def place(workspace: Workspace, key: str) -> Path:
    """Folder of a kept cell: beside the records, or in the cache where those are at a URL."""
    return (workspace.open_store().folder or workspace.cache) / "adapters" / key


def settle(workspace: Workspace, job: Job, record: Record, *, best: bool) -> None:
    """After a cell has ended: keep what it saved if it ended well; else what an earlier run kept stays.

    Args:
        best: of the kept cells of this model and task, leave only the best one (:data:`DECIDES`).
    """
    folder = place(workspace, job.key)
    incoming = folder / INCOMING
    saved = Path(job.keep) if job.keep else incoming
    if record.status != "ok" or not saved.is_dir():
        shutil.rmtree(incoming, ignore_errors=True)
        if _note(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        return
    if saved != incoming:  # another cell combines it and reads it in the cache
        shutil.copytree(saved, incoming, dirs_exist_ok=True)
    shutil.rmtree(folder / SAVED, ignore_errors=True)
    incoming.rename(folder / SAVED)
    group = [job.cell["model"]["id"], job.cell["model"]["revision"], job.cell["task"]["digest"]]
    note = {"label": job.label, "group": group, "score": _score(record), "job": asdict(job)}
    write_atomically(folder / NOTE, json.dumps(note, sort_keys=True, indent=1).encode())
    if best:
        rivals = [(at, found) for at in folder.parent.iterdir() if (found := _note(at)) and found["group"] == group]
        rivals.sort(key=lambda one: (one[1]["score"] is not None, one[1]["score"] or 0.0, one[0].name), reverse=True)
        for at, _ in rivals[1:]:
            shutil.rmtree(at, ignore_errors=True)


def _score(record: Record) -> float | None:
    for name, higher in DECIDES.items():
        value = record.metrics[name].value if name in record.metrics else None
        if value is not None:
            return value if higher else -value
    return None


def _note(folder: Path) -> dict[str, Any] | None:
    file = folder / NOTE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


# --- exporting -------------------------------------------------------------------------------------
def export(workspace: Workspace, record: Record, to: Path, *, form: Form = "adapter", gguf: str = "f16") -> list[Path]:
    """Write what a cell trained into a new folder, with a model card; returns the files.

    Args:
        form: ``adapter``: as plain peft reads it; ``merged``: a model of transformers; ``gguf``: a file for llama.cpp.
        gguf: type of its matrices.

    Raises:
        UserError: the cell was not kept, its method has no such form, or the folder holds something.
    """
    if form not in FORMS:
        raise UserError(f"there is no form {form!r}", where="--as", fix=did_you_mean(form, FORMS))
    kept = place(workspace, record.key)
    note = _note(kept)
    if note is None:
        raise UserError(
            f"nothing of {record.label} was kept",
            where=str(kept),
            fix=f"Set 'keep: all' in the sweep, then: peft-matrix run {record.sweep} --rerun all --only {record.key}",
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{str(to)!r} exists and is not empty", fix="Name a new folder.")
    job = replace(Job.read_dict(note["job"]), device="cpu", gpus=(), cores=(), keep="")
    if job.earlier or job.ingredients:
        raise UserError(f"{record.label} was trained on what other cells trained, and only single cells are exported")
    to.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        said = _write(job, record, kept / SAVED, scratch, form, gguf)
        (scratch / CARD).write_text(card(record, form, said), encoding="utf-8")
        files = sorted(p.relative_to(scratch).as_posix() for p in scratch.rglob("*") if p.is_file())
        manifest = {"form": form, "label": record.label, "key": record.key, "files": files}
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if to.exists():
            to.rmdir()
        scratch.chmod(0o755)
        scratch.rename(to)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [to / name for name in (*files, MANIFEST)]


def _write(job: Job, record: Record, saved: Path, to: Path, form: Form, gguf: str) -> str:
    """Write the files of one form; returns how they are loaded, for the card."""
    from harness.methods.catalog import METHODS
    from harness.methods.peft.method import PeftMethod

    method = METHODS.get(job.cell["method"]["name"])
    if form == "adapter":
        plain = all((saved / name).is_file() for name in ADAPTER_FILES)
        if not plain or getattr(method, "load", None) is not PeftMethod.load:
            raise UserError(
                f"{job.cell['method']['name']} does not save an adapter that plain peft loads",
                where=record.label,
                fix="Export it with --as merged.",
            )
        for name in ADAPTER_FILES:
            shutil.copyfile(saved / name, to / name)
        config = json.loads((to / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = record.cell_view.part("model")["id"]  # peft wrote a path of this machine
        (to / ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        auto = "AutoModelForCausalLM" if _text_model(record) else "AutoModelForSequenceClassification"
        return f"base = {auto}.from_pretrained(BASE)\nmodel = PeftModel.from_pretrained(base, FOLDER)"
    if job.cell["quantization"]["name"] != "none":
        raise UserError(
            f"{record.label} has a quantized base, and a merged model is written in full precision only",
            fix="Export the adapter, or a cell with 'quantization: none'.",
        )
    if form == "gguf" and not _text_model(record):
        raise UserError(f"{record.label} is a classifier, and a GGUF file holds a language model")
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = _merged(replace(job, folder=folder), saved)
        if form == "gguf":
            from harness.quantizers import gguf_export

            told = gguf_export.write(model, tokenizer, to / f"model-{gguf}.gguf", gguf)
            return f"# GGUF, matrices in {gguf}; {told}\nllama-cli -m model-{gguf}.gguf"
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
        _check_read_back(model, to)
    return f"model = {type(model).__name__}.from_pretrained(FOLDER)"


def _text_model(record: Record) -> bool:
    return record.cell_view.part("task")["kind"] != "sequence-classification"


def _merged(job: Job, saved: Path) -> tuple[Any, Any]:
    """The trained model without wrappers, and its tokenizer, built as the cell's worker built them."""
    from harness.matrix import in_effect
    from runners.worker import model_files
    from runners.worker.main import build_context
    from runners.worker.stages import load, quantize

    job = replace(job, cell=in_effect(job.cell))
    ctx: Context = build_context(job, lambda *_, **__: None)
    ctx.path = load.model_path(ctx)
    ctx.tokenizer = load.tokenizer(ctx)
    ctx.method.setting = replace(ctx.method.setting, tokenizer=ctx.tokenizer)
    ctx.model = quantize.load_base(ctx)
    model_files.verify(ctx)
    model = ctx.method.load(ctx.model, saved)
    if not ctx.method.promise.in_place:
        if (refusal := ctx.method.check_merge(ctx.base, ctx.method.params)) is not None:
            raise UserError(f"{job.label} cannot be merged: {refusal}", fix="Export the adapter.")
        model = ctx.method.merge(model)
    model.eval()
    return model, ctx.tokenizer


def _check_read_back(model: PreTrainedModel, folder: Path) -> None:
    """The files must give the logits of the model in memory: a merged layer that is no plain one is not saved.

    Raises:
        UserError: they do not.
    """
    import torch

    fresh = type(model).from_pretrained(folder, dtype=model.dtype).eval()
    ids = torch.arange(5, 21).remainder(model.config.vocab_size).unsqueeze(0)
    with torch.no_grad():
        meant, found = model(input_ids=ids).logits.float(), fresh(input_ids=ids).logits.float()
    error = ((meant - found).abs().max() / meant.abs().max().clamp(min=1.0)).item()
    if not error <= (LARGEST_ERROR if model.dtype == torch.float32 else 0.1):
        raise UserError(
            f"the merged model is not one that transformers reads back: its logits differ by {error:.2g} (relative)",
            fix="Export the adapter.",
        )


# --- the card --------------------------------------------------------------------------------------
def card(record: Record, form: Form, load: str) -> str:
    """The model card: base, method, data, scores with intervals, costs, and ``model-index`` in its front matter.

    Args:
        load: lines of code that load the files.
    """
    from huggingface_hub import ModelCardData

    from harness.models.sources import hub_repository

    cell = record.cell_view
    model, method, task = (cell.part(name) for name in ("model", "method", "task"))
    scores = _scores(record, form)
    data = ModelCardData(
        base_model=hub_repository(str(model["id"])),
        library_name={"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[form],
        tags=["peft-matrix", cell.name("method")],
        model_name=record.label,
        eval_results=_eval_results(cell, scores) or None,
    )
    params = ", ".join(f"{name}={value}" for name, value in sorted(cell.params.items()))
    quantization, training = cell.label("quantization"), cell.part("training")
    lines = [
        f"# {record.label}",
        "",
        f"{method['name']} on {model['id']} (revision {model['revision']}), trained on the task {task['name']}, "
        f"by peft-matrix. These files: {form}.",
        "",
        "| setting | value |",
        "|---|---|",
        f"| method | {method['name']}: {params or 'no parameters'} |",
        f"| learning rate, steps | {method['learning_rate']}, {method['steps']} |",
        f"| batch | {training['batch_size']} x {training['gradient_accumulation']} |",
        f"| base | {model['dtype']}, quantization: {quantization} |",
        f"| task | {task['name']}, version {task['version']}, digest {str(task['digest'])[:12]} |",
        f"| seed | {cell.seed} |",
        "",
        *_table("score", [(name, _with_interval(name, one)) for name, one in scores]),
    ]
    if form == "gguf":
        lines += ["No score: this file was not scored. The record has the scores of the model that was trained.", ""]
    costs = [(name, one) for name in COSTS if (one := record.metrics.get(name)) is not None and one.value is not None]
    units = {name: "" if one.unit in ("1", "count") else one.unit for name, one in costs}
    lines += _table("cost", [(name, f"{one.value:,.6g} {units[name]}".strip()) for name, one in costs])
    if not any(name.endswith("_j") for name, _ in costs):
        lines += ["Energy was not measured.", ""]
    if quantization != "none" and form == "adapter":
        lines += [f"The scores are those on a base in {quantization}; load the base in the same way.", ""]
    lines += ["```python", load, "```", "", f"Record: `{record.id}`, cell `{record.key}`."]
    return f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines) + "\n"


def _eval_results(cell: CellView, scores: Sequence[tuple[str, Reading]]) -> list[EvalResult]:
    """Entries of ``model-index``, one a score."""
    from huggingface_hub import EvalResult

    task = cell.name("task")
    return [
        EvalResult(
            task_type=TASK_TYPES.get(str(cell.part("task")["kind"]), "text-generation"),
            dataset_type=task,
            dataset_name=task,
            metric_type=name,
            metric_name=name,
            metric_value=reading.value,
            metric_args={"items": reading.n, "seed": cell.seed},
        )
        for name, reading in scores
    ]


def _scores(record: Record, form: Form) -> list[tuple[str, Reading]]:
    """Scores of the weights in these files: of a merged model, only what was measured after merging."""
    if form == "gguf":
        return []
    merged = record.metrics.get("merged_accuracy")
    if form == "merged" and merged is not None and merged.value is not None:
        return [("merged_accuracy", merged)]
    from harness.methods.catalog import METHODS

    name, params = record.cell_view.name("method"), record.cell_view.params
    if form == "merged" and not METHODS.get(name).declared(params).in_place:
        return []
    found = [(name, record.metrics[name]) for name in SCORES if name in record.metrics]
    return [(name, reading) for name, reading in found if reading.value is not None]


def _with_interval(name: str, reading: Reading) -> str:
    from harness.stats import wilson

    assert reading.value is not None
    unit = "" if reading.unit in ("1", "fraction") else f" {reading.unit}"
    if name in SHARES and reading.n:
        found = wilson(round(reading.value * reading.n), reading.n)
        return (
            f"{reading.value:.4g}{unit} [{found.low:.4g}, {found.high:.4g}] (95 % interval, Wilson, {reading.n} items)"
        )
    error = reading.details.get("standard_error")
    if error:
        low, high = reading.value - 1.96 * error, reading.value + 1.96 * error
        return f"{reading.value:.4g}{unit} [{low:.4g}, {high:.4g}] (95 % interval, normal, {reading.n} items)"
    return f"{reading.value:.4g}{unit} (no interval)"


def _table(head: str, rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {head} | value |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""] if rows else []
