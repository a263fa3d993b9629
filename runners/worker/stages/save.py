"""Stage ``save``: what fine-tuning produced, on disk as safetensors, and how large it really is."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from runners.worker.context import Context
from runners.worker.scoring import probe_logits

ADAPTER_FOLDER = "adapter"


def run(ctx: Context) -> None:
    """Save the result of training and note the logits that the reloaded model must reproduce."""
    if ctx.scores_only:
        note = f"saved by the cell {ctx.job.earlier[-1]['key']}"
        ctx.record_missing("adapter_bytes", "not_applicable", source="save", note=note)
        return
    if not ctx.produces:
        ctx.record("adapter_bytes", 0, source="nothing was trained")
        return
    ctx.probe_logits = probe_logits(ctx, ctx.model)
    folder = ctx.folder / ADAPTER_FOLDER
    folder.mkdir(exist_ok=True)
    ctx.method.save(ctx.model, folder)
    if ctx.job.keep:
        keep(folder, Path(ctx.job.keep))
    files = [p for p in folder.rglob("*") if p.suffix == ".safetensors"]
    ctx.record("adapter_bytes", sum(p.stat().st_size for p in files), source="safetensors files on disk", n=len(files))


def keep(folder: Path, where: Path) -> None:
    """Copy what was saved to where cells that combine it will look: whole or not at all, and one copy only."""
    where.parent.mkdir(parents=True, exist_ok=True)
    scratch = where.with_name(f".{where.name}-{uuid.uuid4().hex[:8]}")
    shutil.copytree(folder, scratch)
    shutil.rmtree(where, ignore_errors=True)
    scratch.rename(where)
