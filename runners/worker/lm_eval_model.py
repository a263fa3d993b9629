"""lm-eval on the live model: its tasks, prompts, filters and metrics, our batches.

Only the two methods that run the model are replaced. They batch by length over all requests, process a prompt shared by
several options once, and check for a stop text at intervals instead of after every token.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from harness.errors import CheckFailed, Unsupported, UserError
from harness.spec import LmEvalUse
from harness.spec_axes import Decoding
from runners.worker.chat import RENDER_BYTES, RENDER_S, TooSlow, limited
from runners.worker.completion import complete
from runners.worker.context import Context, context_length
from runners.worker.likelihood import log_probs, windows
from tasks import lm_eval_tasks
from tasks.scored import Scored

Results = dict[str, Any]


class LiveModel(HFLM):  # type: ignore[misc]  # lm-eval has no types here
    """The cell's model as lm-eval asks it.

    Attributes:
        cut: contexts that were longer than the model's.
        tokens: completion to its length in tokens, by context.
    """

    def __init__(self, ctx: Context) -> None:
        super().__init__(
            pretrained=ctx.model,
            tokenizer=ctx.tokenizer,
            batch_size=ctx.evaluation.batch_size,
            max_length=context_length(ctx),
            device=str(ctx.device),
        )
        self.ctx = ctx
        self.cut: set[str] = set()
        self.tokens: dict[tuple[str, str], int] = {}

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log p, greedy) of each ((context, continuation), context ids, continuation ids)."""
        flat, owner = [], []
        for i, (texts, head, tail) in enumerate(requests):
            parts, shortened = windows(list(head), list(tail), self.max_length)
            flat += parts
            owner += [i] * len(parts)
            if shortened and texts:
                self.cut.add(texts[0])
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        with torch.inference_mode():
            for i, found in zip(owner, log_probs(self.ctx, flat), strict=True):
                totals[i] += found.total
                greedy[i] = greedy[i] and found.greedy
        return list(zip(totals, greedy, strict=True))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One completion per (context, generation settings), cut before the first stop text."""
        out = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        for rows in groups.values():
            settings, stops, new_tokens = self._settings(requests[rows[0]].args[1])
            contexts = [requests[i].args[0] for i in rows]
            with torch.inference_mode():
                found = complete(
                    self.ctx,
                    [self.tok_encode(context) for context in contexts],
                    new_tokens=new_tokens,
                    stops=stops,
                    decoding=settings,
                )
            for i, context, completion in zip(rows, contexts, found, strict=True):
                out[i] = completion.text
                self.tokens[context, completion.text] = completion.tokens
                if completion.cut:
                    self.cut.add(context)
        return out

    def _settings(self, asked: dict[str, object]) -> tuple[Decoding, list[str], int]:
        """Decoding, stop texts and number of new tokens of a request."""
        kwargs: dict[str, Any] = normalize_gen_kwargs(asked, self.max_gen_toks)
        stops = handle_stop_sequences(kwargs.pop("until", None), eos=self.tok_decode(self.eot_token_id, False))
        new_tokens = int(kwargs.pop("max_gen_toks"))
        if new_tokens >= self.max_length:
            raise Unsupported(
                f"the lm-eval task generates up to {new_tokens} tokens and the model has {self.max_length} positions"
            )
        sampled = bool(kwargs.pop("do_sample", False))
        decoding = {"temperature": kwargs.pop("temperature", 0.0) or 0.0}
        decoding |= {name: kwargs.pop(name) for name in ("top_k", "top_p") if kwargs.get(name)}
        if kwargs:
            raise UserError(f"the lm-eval task asks for generation settings unknown here: {', '.join(kwargs)}")
        if not sampled:
            decoding = {}
        return Decoding(**decoding), [stop for stop in stops if stop], new_tokens


class Suite:
    """The lm-eval tasks of a cell.

    Raises:
        UserError: a task that lm-eval does not know.
    """

    def __init__(self, uses: Sequence[LmEvalUse], workspaces: list[Path]) -> None:
        from lm_eval.tasks import TaskManager

        use_sandbox()
        files = {use.task: lm_eval_tasks.local_file(use.task, workspaces) for use in uses}
        folders = sorted({str(path.parent) for path in files.values() if path})
        # indexing the package's own 14,000 tasks takes ten seconds, so it is done only where one is wanted
        self.manager = TaskManager(include_path=folders or None, include_defaults=None in files.values())
        self.files = files
        for use in uses:
            if use.task not in self.manager.all_tasks:
                raise UserError(
                    f"lm-eval has no task {use.task!r}",
                    where="evaluation.lm_eval",
                    fix=f"Name one, or write {lm_eval_tasks.FOLDER / (use.task + '.yaml')}.",
                )

    def run(self, ctx: Context, model: LiveModel, use: LmEvalUse) -> Results:
        """lm-eval's answer for one task: its results and every sample; no cache of responses is read or written.

        Raises:
            UserError: the task's data cannot be loaded.
        """
        from lm_eval import simple_evaluate

        path = self.files[use.task]
        try:
            with _random_state_kept(), contextlib.chdir(path.parent if path else "."):
                found: Results = simple_evaluate(
                    model=model,
                    tasks=[use.task],
                    task_manager=self.manager,
                    num_fewshot=use.shots,
                    limit=use.items,
                    bootstrap_iters=0,
                    log_samples=True,
                    verbosity="ERROR",
                )
        except (OSError, ConnectionError) as error:
            raise UserError(
                f"the data of the lm-eval task {use.task!r} cannot be loaded: {str(error).splitlines()[0]}",
                fix="Fetch it once with a network, or name a task whose data is here.",
            ) from error
        return found


def use_sandbox() -> None:
    """From here on, templates of lm-eval's tasks are rendered as chat templates are: in a sandbox, with limits.

    lm-eval itself renders the ``doc_to_text`` of any YAML in jinja2 without one. The text is the same.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = utils.regex_replace
    compiled = functools.lru_cache(maxsize=64)(environment.from_string)

    def apply_template(template: str, doc: Mapping[str, object]) -> str:
        try:
            with limited(RENDER_S, RENDER_BYTES):
                return compiled(template).render(**doc)
        except (TooSlow, MemoryError, OverflowError, SecurityError) as error:
            raise UserError(
                f"the template of an lm-eval task failed: {str(error) or 'it asked for too much memory'}",
                where=repr(template[:80]),
                fix="Mend it in the task's YAML.",
            ) from error

    utils.apply_template = apply_template


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """lm-eval seeds the generators of the whole process; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def scored_of(model: LiveModel, sample: Results) -> Scored:
    """A sample of lm-eval as one of ours: correct by its first metric that says right or wrong."""
    arguments = list(sample["arguments"])
    responses = [r[0] for r in sample["resps"]]  # of several samples of a request the first
    context = str(arguments[0][0])
    common: dict[str, Any] = {
        "item": f"{sample['doc_id']}",
        "correct": _correct(sample),
        "cut": context in model.cut,
    }
    if isinstance(responses[0], tuple | list):  # (log p, greedy) of every option
        options = [str(argument[1]) for argument in arguments if argument[0] == arguments[0][0]]
        logps = [float(r[0]) for r in responses[: len(options)]]
        right = _index(sample["target"], options)
        wrong = [logp for k, logp in enumerate(logps) if k != right]
        chosen = options[int(np.argmax(logps))]
        return Scored(
            **common,
            prediction=chosen,
            answer=options[right],
            logp_answer=logps[right],
            logp_choices=logps if len(options) > 1 else None,
            margin=logps[right] - max(wrong) if wrong else None,
            length=len(model.tok_encode(options[right], add_special_tokens=False)),
        )
    if isinstance(responses[0], float):  # log p of a text
        return Scored(**common, prediction="", answer=context, logp_answer=responses[0])
    written = str(responses[0])
    return Scored(
        **common,
        prediction=str(sample["filtered_resps"][0]),
        answer=str(sample["target"]),
        length=model.tokens.get((context, written), 0),
    )


def _index(target: object, options: list[str]) -> int:
    """Position of the right option, which lm-eval gives as a number or as its text.

    Raises:
        CheckFailed: it is none of the options.
    """
    text = str(target).strip()
    stripped = [option.strip() for option in options]
    if len(options) == 1:
        return 0
    if isinstance(target, str) and text in stripped:
        return stripped.index(text)
    if text.isdigit() and int(text) < len(options):
        return int(text)
    raise CheckFailed("lm-eval-target", f"the right answer {text[:60]!r} is none of the {len(options)} options")


RIGHT_OR_WRONG = ("acc", "exact_match", "em", "contains")


def _correct(sample: Results) -> bool | None:
    """True if the item is right, by the first of lm-eval's metrics that decides it; None if none does."""
    for name in RIGHT_OR_WRONG:
        if isinstance(sample.get(name), int | float | bool | np.number):
            return bool(sample[name] == 1)
    return None
