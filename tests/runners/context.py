"""A worker's context around a model that a test already holds, without a job, a sweep or a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.spec import Evaluation
from runners.worker.context import Context
from tasks.task import Task, TaskDefinition


def context(model: Any, tokenizer: Any, **evaluation: Any) -> Context:
    """The parts of a context that scoring needs: model, tokenizer, evaluation, seed."""
    unused: Any = None
    return Context(
        job=unused,
        kind="causal-lm",
        task=unused,
        retain=[],
        method=unused,
        quantizer=unused,
        objective=unused,
        recipe=unused,
        training=unused,
        evaluation=Evaluation(**{"batch_size": 4, **evaluation}),
        probes=unused,
        seed=0,
        steps=0,
        learning_rate=0.0,
        device=torch.device("cpu"),
        say=lambda *_, **__: None,
        tokenizer=tokenizer,
        model=model.eval(),
    )


def task(**more: Any) -> Task:
    """A task of no rows, for items that a test makes itself."""
    kind = more.pop("kind", "generation")
    needs = {
        "generation": {"prompt": "{q}", "answer": "{a}"},
        "multiple-choice": {"prompt": "{q}", "choices": "c", "label": "l"},
        "language-modelling": {"answer": "{a}"},
    }[kind]
    definition = {
        "name": "made",
        "version": 1,
        "summary": "Made by a test.",
        "kind": kind,
        "licence": "none",
        "source": {"data_root": "none"},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        **needs,
        **more,
    }
    return Task(TaskDefinition.model_validate(definition), Path("made.yaml"))
