"""Standard tasks on the cell's model: scored by lm-eval, checked against our own scorer, written down one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import CheckFailed, Unsupported
from harness.spec import LmEvalUse
from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.encoding import encode_answer
from runners.worker.job import write_atomically
from runners.worker.likelihood import SHARED_TOLERANCE, Window, answer_logps, log_probs
from tasks.scored import Scored
from tasks.scoring import summarise

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedModel

CHECKED_ITEMS = 16
"""Items of every task that are scored by lm-eval's own code and by our own scorer too."""
CHECKED_COMPLETIONS = 4
START_PROBE = 16
"""Items (of training, where there are any) on which it is measured whether the model expects a start token."""
START_GAIN_NAT = 0.1
"""Gain per token from a start token that its tokenizer leaves out, above which the model expects one."""


def prepare(ctx: Context) -> None:
    """Find the tasks of ``evaluation.lm_eval`` before anything costly happens.

    Raises:
        UserError: one that lm-eval does not know.
    """
    if ctx.evaluation.lm_eval:
        from runners.worker.lm_eval_model import Suite

        ctx.suite = Suite(ctx.evaluation.lm_eval, [Path(w) for w in ctx.job.workspaces])


def check_start(ctx: Context) -> None:
    """lm-eval tokenizes on its own: a start token that the tokenizer names and does not add would silently be missing.

    Raises:
        Unsupported: the tokenizer's settings ask for one, or the base model does clearly better with one.
    """
    tokenizer = ctx.tokenizer
    start = tokenizer.bos_token_id
    if ctx.suite is None or start is None or tokenizer("a")["input_ids"][:1] == [start]:
        return
    why = f"the tokenizer names the start token {tokenizer.bos_token!r} and does not put it in front"
    fix = "give it a post-processor that does (tokenizers.processors.TemplateProcessing) and save it again"
    if getattr(tokenizer, "add_bos_token", False):
        raise Unsupported(f"{why}, although its settings say so: lm-eval would score without; {fix}")
    if start == tokenizer.eos_token_id:
        return  # one token for both, as in GPT-2 and Pythia: texts do not begin with it
    bare, led = [], []
    for item in (ctx.splits.train or ctx.splits.test)[:START_PROBE]:
        tail = encode_answer(tokenizer, item.answer)[:64]
        head = tokenizer(item.prompt)["input_ids"][-256:]
        bare.append(Window(head or [start], tail))
        led.append(Window([start, *head], tail))
    with torch.inference_mode():
        gain = sum(b.total - a.total for a, b in zip(log_probs(ctx, bare), log_probs(ctx, led), strict=True))
    gain /= sum(len(window.tail) for window in bare)
    ctx.facts["start_token"] = {"added": False, "gain_nat_per_token": gain}
    if gain > START_GAIN_NAT:
        raise Unsupported(
            f"{why}, and the model gains {gain:.2g} nat a token with it: lm-eval would score without; {fix}"
        )


def score_standard(ctx: Context, *, arm: str, metric: str) -> None:
    """Score the cell's lm-eval tasks; record ``metric``, the mean of their accuracies, and keep their samples.

    Every task's results are written to the job's folder when it is done.

    Raises:
        CheckFailed: ``lm-eval-agreement``: our scores differ from those of lm-eval's code or of our scorer.
    """
    if ctx.suite is None:
        return
    if ctx.random_weights:
        ctx.record_missing(metric, "not_applicable", source="lm-eval", note=RANDOM_WEIGHTS)
        return
    from runners.worker.lm_eval_model import LiveModel

    model = LiveModel(ctx)
    results = ctx.facts.setdefault("lm_eval", {}).setdefault(arm, {})
    right: dict[str, float] = {}
    items = 0
    for use in ctx.evaluation.lm_eval:
        ctx.say("progress", what=f"lm-eval {use.task}", at=len(results), of=len(ctx.evaluation.lm_eval))
        found = ctx.suite.run(ctx, model, use)
        scored = keep(ctx, model, found, arm)
        results[use.task] = written = {**numbers(found), "agreement": agree(ctx, model, use, found)}
        content = json.dumps({"arm": arm, "task": use.task, **written}, sort_keys=True)
        write_atomically(ctx.folder / f"lm-eval-{arm}-{use.task}.json", content.encode())
        for name, rows in scored.items():
            accuracy = summarise(rows)["accuracy"]
            if accuracy.value is not None:
                right[name] = accuracy.value
                items += accuracy.n
    if right:
        source = f"lm-eval, mean over {len(right)} tasks"
        ctx.record(metric, sum(right.values()) / len(right), source=source, n=items, details=right)
    else:
        note = "none of the tasks judges its items right or wrong"
        ctx.record_missing(metric, "not_applicable", source="lm-eval", note=note)


def keep(ctx: Context, model: PreTrainedModel, found: dict[str, Any], arm: str) -> dict[str, list[Scored]]:
    """Samples of every (sub)task, in our format; of a task with several filters those of the first."""
    from runners.worker.lm_eval_model import scored_of

    kept = {}
    for name, samples in found["samples"].items():
        first = [s for s in samples if s.get("filter") == samples[0].get("filter")]
        kept[name] = [scored_of(model, s) for s in sorted(first, key=lambda s: int(s["doc_id"]))]
        ctx.keep_samples(arm, f"lm-eval:{name}", kept[name])
    return kept


def numbers(found: dict[str, Any]) -> dict[str, object]:
    """lm-eval's results of a task or group and its parts, as plain JSON."""
    return {
        "results": {
            task: {k: float(v) for k, v in values.items() if isinstance(v, int | float) or hasattr(v, "dtype")}
            for task, values in found["results"].items()
        },
        "versions": {task: str(version) for task, version in found.get("versions", {}).items()},
        "shots": dict(found.get("n-shot", {})),
    }


def agree(ctx: Context, model: PreTrainedModel, use: LmEvalUse, found: dict[str, Any]) -> dict[str, object]:
    """Score some items once more by lm-eval's own code and by our own scorer; what was found.

    Raises:
        CheckFailed: ``lm-eval-agreement``.
    """
    options, completions = [], []
    for samples in found["samples"].values():
        for sample in samples[:CHECKED_ITEMS]:
            for arguments, response in zip(sample["arguments"], sample["resps"], strict=True):
                if isinstance(response[0], tuple | list):
                    options.append((arguments[0], arguments[1], float(response[0][0]), sample["doc_id"]))
                elif isinstance(response[0], str):
                    completions.append((arguments, response[0]))
    noted: dict[str, object] = {}
    if options:
        noted |= _options_agree(ctx, model, use, options)
    if completions:
        noted |= _completions_agree(ctx, model, use, completions[:CHECKED_COMPLETIONS])
    return noted


def _options_agree(
    ctx: Context, model: PreTrainedModel, use: LmEvalUse, options: Sequence[tuple[str, str, float, object]]
) -> dict[str, object]:
    from lm_eval.models.huggingface import HFLM

    requests = [((c, o), *model._encode_pair(c, o)) for c, o, _, _ in options if c]
    theirs = HFLM._loglikelihood_tokens(model, requests, disable_tqdm=True)
    ours = [logp for c, _, logp, _ in options if c]
    allowed = SHARED_TOLERANCE[getattr(torch, ctx.job.cell["model"]["dtype"])]
    worst = max((abs(a - b[0]) / max(1.0, abs(b[0])) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if not worst <= allowed:
        detail = f"log-probabilities of {use.task} differ by {worst:.3g} from lm-eval's own code, {allowed:g} allowed"
        raise CheckFailed("lm-eval-agreement", detail)
    with torch.inference_mode():
        own = answer_logps(ctx, [(c, o) for c, o, _, _ in options], end=False).logps
    by_item: dict[object, list[tuple[float, float]]] = {}
    for (_, _, logp, item), mine in zip(options, own, strict=True):
        by_item.setdefault(item, []).append((logp, mine))
    # a tie within rounding may fall to either side
    same = [_chosen_alike(pairs, allowed) for pairs in by_item.values()]
    if not all(same):
        detail = f"our own scorer chooses another option than lm-eval for {same.count(False)} of {len(same)} items"
        raise CheckFailed("lm-eval-agreement", f"{use.task}: {detail}")
    return {"items": len(same), "worst_difference": worst}


def _chosen_alike(pairs: Sequence[tuple[float, float]], allowed: float) -> bool:
    theirs, mine = ([pair[side] for pair in pairs] for side in (0, 1))
    chosen = mine.index(max(mine))
    return max(theirs) - theirs[chosen] <= allowed * max(1.0, abs(max(theirs)))


def _completions_agree(
    ctx: Context, model: PreTrainedModel, use: LmEvalUse, completions: Sequence[tuple[object, str]]
) -> dict[str, object]:
    from types import SimpleNamespace

    from lm_eval.models.huggingface import HFLM

    requests = [SimpleNamespace(args=arguments) for arguments, _ in completions]
    theirs = HFLM.generate_until(model, requests, disable_tqdm=True)
    same = [text == other for (_, text), other in zip(completions, theirs, strict=True)]
    if not all(same) and ctx.job.cell["model"]["dtype"] == "float32":
        detail = f"{same.count(False)} of {len(same)} completions of {use.task} are not those of lm-eval's own code"
        raise CheckFailed("lm-eval-agreement", detail)
    return {"completions": len(same), "completions_equal": same.count(True)}
