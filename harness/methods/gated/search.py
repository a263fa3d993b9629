"""The bilevel search: a step of the factors on training data, then a step of the gates on validation data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.methods.base import Batch
from harness.methods.modules import classifier

if TYPE_CHECKING:
    from harness.methods.gated.lora import SearchedLora


def bilevel(
    method: SearchedLora,
    model: nn.Module,
    gates: Mapping[str, int],
    training: Callable[[int], Iterable[Batch]],
    validation: Callable[[int], Iterable[Batch]],
) -> tuple[Tensor, list[float]]:
    """The gates' logits after the search, and the training loss of its steps.

    First-order: how the factors follow from the gates is not differentiated. The model is in
    evaluation, as in Flexora's released code: dropout does not reach the gates.

    Args:
        gates: name of a layer to the number of its gate.
        training: yields batches for the factors (and a classifier's head).
        validation: yields batches for the gates.
    """
    head = classifier(model)
    before = copy.deepcopy(head.state_dict()) if head is not None else {}
    method.attach(model)
    factors = [p for p in model.parameters() if p.requires_grad]
    logits = nn.Parameter(torch.zeros(max(gates.values()) + 1, device=factors[0].device))
    number = {id(model.get_submodule(name)): index for name, index in gates.items()}
    method.gate = lambda module: method.opening(logits)[number[id(module)]]
    s = method.setting
    inner = torch.optim.AdamW(factors, lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay)
    outer = torch.optim.Adam([logits], lr=float(method.params["gate_rate"]))
    training_mode = model.training
    model.eval()
    losses = []
    steps, each = method.search_steps, int(method.params["validation_batches"])
    held_out = iter(validation(steps * each))
    for batch in training(steps):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        _step(inner, factors, [loss])
        _step(outer, [logits], (model(**next(held_out)).loss / each for _ in range(each)))
    method.gate = None
    keep_head = method.keep(model, opened=method.opening(logits.detach()))
    model.train(training_mode)
    method.take_off(model)
    if head is not None and not keep_head:
        head.load_state_dict(before)
    return logits.detach().cpu(), losses


def _step(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], losses: Iterable[Tensor]) -> None:
    """One step of ``trained`` only, although the losses depend on more."""
    for loss in losses:
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    optimizer.step()
    optimizer.zero_grad()
