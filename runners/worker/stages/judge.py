"""Stage ``judge``: which of two answers to a task is better, the model's or the task's reference.

Every pair is asked twice, the second time with the answers in the other places, because judges favour a place (Zheng
et al. 2023, arXiv:2306.05685). A verdict counts if it is the same both times; if not, the pair is a tie. A judge is a
local model, asked by the log-probabilities of the two replies, or a server with the interface of OpenAI's chat
completions, asked at temperature 0. Verdicts are metrics of the family ``judged``, never part of an accuracy.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from harness.bounded import parse_json
from harness.errors import UserError
from runners.worker.context import Context
from runners.worker.likelihood import answer_logps
from runners.worker.othermodels import Models

PROMPT = (
    "Compare two answers to the same task.\n\nTask:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\n"
    "Which answer is better? Reply with the letter A or B and nothing else.\nBetter answer:"
)
METRICS = ("judge_win_rate", "judge_consistency", "judge_agreement", "judge_length_bias")
TRIES, PAUSE_S, MOST_BYTES = 3, 0.5, 1 << 20
UNREADABLE_SHOWN = 3

Place = Literal["A", "B"]
Ask = Callable[[Sequence[str]], list[Place | None]]
"""Places that the judge chose, one for each text; None where its reply names neither or both."""


class JudgeFailed(Exception):
    """The judge gives no replies."""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One judged item.

    Attributes:
        item: the item's id.
        prompt: what was asked.
        given: the model's completion.
        reference: the task's answer.
        correct: what the task's parser says of the completion; None where it judges nothing.
    """

    item: str
    prompt: str
    given: str
    reference: str
    correct: bool | None


def run(ctx: Context) -> None:
    """Record the judge's metrics for the completions that the stage ``evaluate`` scored.

    A judge that cannot be reached, times out or replies with nothing readable leaves the metrics without a value, and
    the cell is ok: nothing else depends on it.
    """
    said = ctx.job.cell["judge"]
    pairs = _pairs(ctx, said.get("items"))
    if not pairs:
        _nothing(ctx, "not_applicable", "the task has no generated answers with a reference")
        return
    began = time.perf_counter()
    models = Models(ctx, {"judge": {**said["judge"], "at": "common.judge"}} if "judge" in said else {})
    server = Server(said) if "url" in said else None
    try:
        ask = server.ask if server is not None else _by_likelihood(models)
        verdicts, seen = judged(pairs, ask)
    except JudgeFailed as error:
        ctx.facts["judge"] = {"failed": str(error), **(server.facts() if server is not None else {})}
        _nothing(ctx, "failed", str(error))
        return
    finally:
        told = models.close()
    facts = server.facts() if server is not None else told
    ctx.facts["judge"] = {**facts, **seen, "seconds": time.perf_counter() - began}
    _record(ctx, pairs, verdicts, "judge, " + (said["name"] if server is not None else "log-probabilities"))


def _pairs(ctx: Context, most: int | None) -> list[JudgedPair]:
    if ctx.task.definition.kind != "generation" or not ctx.task.definition.wants_completions:
        return []
    rows = [row for row in ctx.samples if row["arm"] == "adapted" and "#" not in row["item"]]
    by_item = {item.id: item for item in ctx.splits.test}
    return [
        JudgedPair(row["item"], by_item[row["item"]].prompt, row["prediction"], row["answer"], row["correct"])
        for row in rows[:most]
        if row["item"] in by_item
    ]


def judged(pairs: Sequence[JudgedPair], ask: Ask) -> tuple[list[float | None], dict[str, Any]]:
    """Score of every pair: 1 if the completion is better, 0 if the reference is, 0.5 if the judge follows the place.

    None where one of the two replies could not be read. Also how often the first place was chosen.
    """
    texts = [PROMPT.format(prompt=p.prompt, a=p.given, b=p.reference) for p in pairs]
    texts += [PROMPT.format(prompt=p.prompt, a=p.reference, b=p.given) for p in pairs]
    places = ask(texts)
    first, second = places[: len(pairs)], places[len(pairs) :]
    scores: list[float | None] = [
        None if a is None or b is None else ((a == "A") + (b == "B")) / 2 for a, b in zip(first, second, strict=True)
    ]
    readable = [place for place in places if place is not None]
    share = sum(place == "A" for place in readable) / len(readable) if readable else None
    return scores, {"asked": len(places), "unreadable": len(places) - len(readable), "first_place_share": share}


def _record(ctx: Context, pairs: Sequence[JudgedPair], scores: Sequence[float | None], source: str) -> None:
    known = [(pair, score) for pair, score in zip(pairs, scores, strict=True) if score is not None]
    if not known:
        _nothing(ctx, "failed", f"none of the judge's {2 * len(pairs)} replies is the letter A or B")
        return
    decided = [(pair, score) for pair, score in known if score != 0.5]
    wrong = [score for pair, score in decided if pair.correct is False]
    uneven = [
        (len(pair.given.encode()) > len(pair.reference.encode())) == (score == 1)
        for pair, score in decided
        if len(pair.given.encode()) != len(pair.reference.encode())
    ]
    values: dict[str, tuple[float, int] | None] = {
        "judge_win_rate": (sum(score for _, score in known) / len(known), len(known)),
        "judge_consistency": (len(decided) / len(known), len(known)),
        "judge_agreement": (sum(score == 0 for score in wrong) / len(wrong), len(wrong)) if wrong else None,
        "judge_length_bias": (sum(uneven) / len(uneven) - 0.5, len(uneven)) if uneven else None,
    }
    for name, found in values.items():
        if found is None:
            ctx.record_missing(name, "not_applicable", source=source, note="no pair of this kind was decided")
        else:
            ctx.record(name, found[0], source=source, n=found[1])


def _nothing(ctx: Context, why: Any, note: str) -> None:
    for name in METRICS:
        ctx.record_missing(name, why, source="judge", note=note)


def _by_likelihood(models: Models) -> Ask:
    """A local judge: the letter with the higher log-probability after the prompt; equal ones are unreadable."""

    def ask(texts: Sequence[str]) -> list[Place | None]:
        judge = models.model("judge")
        with torch.inference_mode():
            found = answer_logps(judge, [(text, reply) for text in texts for reply in (" A", " B")], end=False).logps
        pairs = zip(found[::2], found[1::2], strict=True)
        return [None if a == b else "A" if a > b else "B" for a, b in pairs]

    return ask


class Server:
    """A server with the interface of OpenAI's chat completions.

    Args:
        said: ``url`` (up to ``/v1``), ``name`` of the model there, ``key_env``: the environment variable that holds the
            key, ``timeout_s`` of a reply.

    Raises:
        UserError: the environment variable of the key is not set.
    """

    def __init__(self, said: dict[str, Any]) -> None:
        self.url, self.name, self.timeout_s = said["url"].rstrip("/"), said["name"], said["timeout_s"]
        self.versions: dict[str, int] = {}
        self.unreadable: list[str] = []
        self.headers = {"Content-Type": "application/json"}
        if variable := said.get("key_env"):
            if variable not in os.environ:
                raise UserError(f"the judge's key is missing: the environment variable {variable} is not set")
            self.headers["Authorization"] = f"Bearer {os.environ[variable]}"

    def ask(self, texts: Sequence[str]) -> list[Place | None]:
        """One request for each text.

        Raises:
            JudgeFailed: the server does not answer, or not as such a server does; or several versions of its model did.
        """
        places = [self._place(self._reply(text)) for text in texts]
        if len(self.versions) > 1:
            raise JudgeFailed(f"the judge changed while it was asked: {', '.join(sorted(self.versions))}")
        return places

    def facts(self) -> dict[str, object]:
        """The model's versions as the server names them, with their replies; the first replies that are unreadable."""
        return {"versions": self.versions, "unreadable_replies": self.unreadable[:UNREADABLE_SHOWN]}

    def _place(self, reply: str) -> Place | None:
        found = set(re.findall(r"(?<![A-Za-z])[AB](?![A-Za-z])", reply))
        if len(found) == 1:
            return "A" if "A" in found else "B"
        self.unreadable.append(reply[:100])
        return None

    def _reply(self, text: str) -> str:
        said = {
            "model": self.name,
            "temperature": 0,
            "seed": 0,
            "max_tokens": 8,
            "messages": [{"role": "user", "content": text}],
        }
        body = json.dumps(said).encode()
        why = ""
        for attempt in range(TRIES):
            time.sleep(PAUSE_S * attempt)
            request = urllib.request.Request(f"{self.url}/chat/completions", body, self.headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return self._content(response.read(MOST_BYTES))
            except urllib.error.HTTPError as error:
                why = f"the judge's server answers {error.code} {error.reason}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:
                why = f"the judge's server cannot be asked: {error or type(error).__name__}"
        raise JudgeFailed(why)

    def _content(self, body: bytes) -> str:
        try:
            answer = parse_json(body.decode(), where="the judge's reply")
            version = "/".join(str(answer[k]) for k in ("model", "system_fingerprint") if answer.get(k))
            content = answer["choices"][0]["message"]["content"] or ""
        except (UserError, UnicodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise JudgeFailed("the judge's server does not answer like a chat completion") from error
        self.versions[version] = self.versions.get(version, 0) + 1
        return str(content)
