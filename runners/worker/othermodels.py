"""Requests of objectives and recipes to models: the base before the method is attached, a reference, a teacher.

A second model is loaded when it is first asked something and is gone at the end of the stage, so that its memory and
energy are in that stage alone. What a model says about rows is kept in the cache by the digest of model and rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from harness.digests import digest
from harness.errors import Unsupported, UserError
from harness.item import Item
from harness.models.build_once import made_once
from harness.objectives.base import Row
from harness.objectives.losses import IGNORED, labelled_logits, sequence_log_probs, token_log_probs, top_log_probs
from harness.quantizers.catalog import QUANTIZERS
from runners.worker import earlier, model_files, scoring
from runners.worker.batches import to_device
from runners.worker.context import Context
from runners.worker.encoding import Collator, by_length
from runners.worker.gradients import projected_gradients
from runners.worker.likelihood import answer_logps
from runners.worker.memory import release
from runners.worker.stages import load, quantize
from tasks.data import load_split
from tasks.scoring import score_generation
from tasks.task import load_task

if TYPE_CHECKING:  # heavy, and only for types
    import numpy as np
    from numpy.typing import NDArray

Ask = Callable[[Context, Sequence[Row]], dict[str, torch.Tensor]]


class Models:
    """The base and the other models of one cell, for the length of one stage.

    Attributes:
        calls: name of the model to rows and tokens that were sent through it, and tokens it wrote.
        cached: what was found in the cache instead, and the seconds that making it took.
    """

    def __init__(self, ctx: Context, named: dict[str, dict[str, Any]]) -> None:
        self.ctx = ctx
        self.named = named
        self.calls: dict[str, dict[str, int]] = {}
        self.cached: dict[str, float] = {}
        self.loaded: dict[str, Context] = {}
        self.facts_of: dict[str, object] = {}

    # --- of both -------------------------------------------------------------------------------
    def model(self, role: str) -> Context:
        """The cell as if its base were the model of this role; ``base`` is the cell itself."""
        if role == "base" or (role == "reference" and role not in self.named):
            return self.ctx
        if role not in self.loaded:
            self.loaded[role] = self._load(role)
        return self.loaded[role]

    def close(self) -> dict[str, Any]:
        """Let the loaded models go; what they were and were asked, for the record."""
        self.loaded.clear()
        release()
        return {"calls": self.calls, "from_cache_s": self.cached, "models": self.facts_of}

    def _load(self, role: str) -> Context:
        other = second_context(self.ctx, self.named[role])
        began = time.perf_counter()
        other.path = load.model_path(other)
        other.tokenizer = load.tokenizer(other)
        other.quantizer.tokenizer = other.tokenizer
        other.model = quantize.load_base(other)
        model_files.verify(other)
        if (told := self.ctx.job.trained.get(self.named[role]["at"])) is not None:
            other.model = earlier.trained(other, told)
            other.facts["trained_by"] = {"cell": told["label"], "key": told["key"]}
        other.model.requires_grad_(False)
        self.facts_of[role] = {
            "bytes": sum(t.numel() * t.element_size() for t in other.model.state_dict().values()),
            "load_s": time.perf_counter() - began,
            **other.facts,
        }
        return other

    def _count(self, role: str, *, rows: int, tokens: int, written: int = 0) -> None:
        counts = self.calls.setdefault(role, {"rows": 0, "tokens": 0, "written_tokens": 0})
        counts["rows"] += rows
        counts["tokens"] += tokens
        counts["written_tokens"] += written

    # --- what objectives ask -------------------------------------------------------------------
    def log_probs(self, rows: Sequence[Row]) -> list[list[float]]:
        """See :class:`harness.objectives.base.OtherModels`."""
        self._same_tokenizer("reference")
        found = self._kept("reference", rows, {"what": "log-probs"}, _log_probs)["log_probs"]
        return [list(map(float, row)) for row in found.double()]

    def top_log_probs(self, rows: Sequence[Row], k: int, temperature: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """See :class:`harness.objectives.base.OtherModels`."""
        self._same_tokenizer("teacher")

        def ask(ctx: Context, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
            return _top_log_probs(ctx, rows, k, temperature)

        found = self._kept("teacher", rows, {"what": "top", "k": k, "temperature": temperature}, ask)
        sizes = found["sizes"].tolist()
        return list(
            zip(
                torch.split(found["indices"].long(), sizes), torch.split(found["log_probs"].float(), sizes), strict=True
            )
        )

    def answers(self, items: Sequence[Item]) -> list[str]:
        """See :class:`harness.objectives.base.OtherModels`."""
        return self.answers_of(items, by="teacher")

    def _same_tokenizer(self, role: str) -> None:
        """Token by token only models with the same tokens can be compared.

        Raises:
            Unsupported: the other model's tokenizer is another one.
        """
        if role not in self.named:
            return
        other = second_context(self.ctx, self.named[role])
        other.path = load.model_path(other)
        theirs, ours = load.tokenizer(other), self.ctx.tokenizer
        if theirs.get_vocab() != ours.get_vocab():
            raise Unsupported(
                f"the {role} has another tokenizer than the model, so that their probabilities cannot be compared "
                "token by token; distill-sequence works with any teacher"
            )

    def _kept(self, role: str, rows: Sequence[Row], what: dict[str, object], ask: Ask) -> dict[str, torch.Tensor]:
        """Log-probabilities of the rows under the model, from the cache where it was asked before."""
        cell = self.ctx.job.cell
        who = self.named.get(role) or {"model": cell["model"], "quantization": cell["quantization"]}
        ids = [[s["input_ids"] for s in row["sequences"]] for row in rows]
        labels = [[s["labels"] for s in row["sequences"]] for row in rows]
        asked = ("model", "quantization", *(("trained",) if "trained" in who else ()))
        plain = {key: {k: v for k, v in who[key].items() if k != "label"} for key in asked}
        identity = {**what, "who": plain, "ids": ids, "labels": labels, "seed": cell["seed"], "layout": 1}
        folder = Path(self.ctx.job.cache) / "targets" / digest(identity)[:32]
        fresh = False

        def make(scratch: Path) -> None:
            nonlocal fresh
            fresh = True
            ctx = self.model(role)
            began = time.perf_counter()
            with torch.inference_mode():
                found = ask(ctx, rows)
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, scratch / "targets.safetensors")
            (scratch / "made.json").write_text(json.dumps({"seconds": time.perf_counter() - began}))
            self._count(role, rows=len(rows), tokens=sum(len(s) for row in ids for s in row))

        made_once(folder, make)
        if not fresh:
            self.cached[role] = json.loads((folder / "made.json").read_text())["seconds"]
        return load_file(folder / "targets.safetensors")

    # --- what recipes ask ----------------------------------------------------------------------
    @property
    def seed(self) -> int:
        """The cell's."""
        return self.ctx.seed

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.ctx.steps

    @property
    def budget(self) -> int:
        """Rows that training will read."""
        return self.ctx.steps * self.ctx.training.batch_size * self.ctx.training.gradient_accumulation

    @property
    def validation(self) -> Sequence[Item]:
        """Items of the validation split."""
        return self.ctx.splits.validation

    @property
    def mask_token(self) -> int:
        """The tokenizer's mask token, else its unknown one, else padding."""
        tokenizer = self.ctx.tokenizer
        found = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        return int(next(token for token in found if token is not None))

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Tokens of prompt and answer."""
        rows, _ = load.encoded(self.ctx, items)
        return [len(row["input_ids"]) for row in rows]

    def log_probs_of(self, items: Sequence[Item], by: str = "base") -> list[tuple[float, int]]:
        """Log-probability and tokens of the right answers; of a classifier the class's, with one token."""
        ctx = self.model(by)
        with torch.inference_mode():
            if ctx.kind == "sequence-classification":
                logits, _ = scoring.classification_logits(ctx, items)
                logp = torch.from_numpy(logits).log_softmax(-1)
                found = [(float(logp[i, item.label]), 1) for i, item in enumerate(items)]
            else:
                answers = answer_logps(ctx, [(item.prompt, item.answer) for item in items])
                found = list(zip(answers.logps, answers.lengths, strict=True))
        self._count(by, rows=len(items), tokens=sum(n for _, n in found))
        return found

    def token_log_probs(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Log-probability of every labelled token of each row's first sequence under the base."""
        out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        with torch.inference_mode():
            for positions, batch, _ in batches(self.ctx, [_first(row) for row in rows]):
                logp = token_log_probs(self.ctx.model(**_inputs(batch)).logits, batch["labels"]).cpu()
                mask = (batch["labels"][:, 1:] != IGNORED).cpu()
                for at, one, kept in zip(positions, logp, mask, strict=True):
                    out[at] = one[kept].clone()
        self._count("base", rows=len(rows), tokens=sum(len(o) for o in out))
        return out

    def answers_of(self, items: Sequence[Item], *, by: str = "base", temperature: float = 0.0) -> list[str]:
        """One completion for each prompt. The delimiter that the task puts before an answer is put before it."""
        ctx = self.model(by)
        decoding = ctx.evaluation.decoding.model_copy(update={"temperature": temperature, "samples": 1})
        asked = replace(ctx, evaluation=ctx.evaluation.model_copy(update={"decoding": decoding}))
        with torch.inference_mode():
            given = scoring.generate(asked, ctx.task, items)
        self._count(by, rows=len(items), tokens=0, written=sum(c.tokens for c in given))
        before = ctx.task.definition.delimiter
        return [text if text.startswith(before) else before + text for text in (c.text for c in given)]

    def judged_right(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        """By the task's parser."""
        return [bool(s.correct) for s in score_generation(self.ctx.task, items, answers)]

    def items_of(self, task: str) -> list[Item]:
        """The training items of another task."""
        found = load_task(task, [Path(w) for w in self.ctx.job.workspaces])
        root = Path(self.ctx.job.data_root) if self.ctx.job.data_root else None
        return list(load_split(found, "train", data_root=root, max_items=None, seed=self.ctx.seed))

    def gradients(
        self, items: Sequence[Item], *, warm_up: Sequence[Item], dimensions: int, steps: int
    ) -> NDArray[np.float32]:
        """See :class:`harness.recipes.base.Desk`."""
        rows, _ = load.encoded(self.ctx, items)
        first, _ = load.encoded(self.ctx, warm_up)
        found = projected_gradients(self.ctx, rows, first, dimensions=dimensions, steps=steps)
        self._count("base", rows=len(rows) + len(first), tokens=sum(len(r["input_ids"]) for r in rows))
        return found


def second_context(ctx: Context, who: dict[str, Any]) -> Context:
    """The cell with another model and quantization instead; nothing of its state is shared."""
    cell = {**ctx.job.cell, "model": who["model"], "quantization": who["quantization"]}
    job = replace(ctx.job, cell=cell, model=ctx.job.others[who["at"]], earlier=())
    quantization = who["quantization"]
    quantizer = QUANTIZERS.get(quantization["name"])(quantization["params"], ctx.kind, ctx.job.device)
    quantizer.cache = Path(ctx.job.cache)
    quantizer.tools = ctx.job.tools
    return replace(
        ctx, job=job, quantizer=quantizer, panel=None, facts={}, metrics={}, samples=[], series={}, model_stamps={}
    )


def batches(ctx: Context, rows: Sequence[Row]) -> Any:
    """Positions of the rows and their batch on the device, by length; and how many sequences a row has."""
    collate = Collator(ctx.tokenizer.pad_token_id)
    lengths = [max(len(s["input_ids"]) for s in row["sequences"]) for row in rows]
    for positions in by_length(lengths, ctx.evaluation.batch_size):
        chosen: list[Row] = [{"sequences": rows[i]["sequences"], "extra": {}} for i in positions]
        yield positions, to_device(ctx, collate(chosen)), len(chosen[0]["sequences"])


def _inputs(batch: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _first(row: Row) -> Row:
    return {"sequences": row["sequences"][:1], "extra": {}}


def _log_probs(ctx: Context, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """[rows, sequences]."""
    out = torch.empty(len(rows), len(rows[0]["sequences"]))
    for positions, batch, n in batches(ctx, rows):
        logp, _ = sequence_log_probs(ctx.model(**_inputs(batch)).logits, batch["labels"])
        out[positions] = logp.cpu().view(n, -1).T
    return {"log_probs": out}


def _top_log_probs(ctx: Context, rows: Sequence[Row], k: int, temperature: float) -> dict[str, torch.Tensor]:
    """The rows' labelled tokens one after the other; ``sizes`` says how many each row has."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(rows)
    for positions, batch, _ in batches(ctx, [_first(row) for row in rows]):
        logits, labels = ctx.model(**_inputs(batch)).logits, batch["labels"]
        if labels.dim() == 1:
            parts, sizes = logits, [1] * len(positions)
        else:
            parts, sizes = labelled_logits(logits, labels)[0], (labels[:, 1:] != IGNORED).sum(-1).tolist()
        for at, part in zip(positions, torch.split(parts, sizes), strict=True):
            indices, log_probs = top_log_probs(part, k, temperature=temperature)
            found[at] = (indices.cpu(), log_probs.cpu())
    if not found:
        raise UserError("there are no training rows to ask the teacher about")
    return {
        "indices": torch.cat([i for i, _ in found]),
        "log_probs": torch.cat([p for _, p in found]),
        "sizes": torch.tensor([len(i) for i, _ in found]),
    }
