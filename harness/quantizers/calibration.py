"""Statistics of the layers' inputs on a few batches: the data for GPTQ, AWQ, Wanda and SparseGPT.

All layers are watched in one pass over the unquantized model. (The papers' own code quantizes block by block and
feeds each block the outputs of the quantized ones before it; that costs a pass per block.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.quantizers.layers import plain_linears


class InputStatistics:
    """Sums over the non-padding tokens x that one linear layer received.

    Attributes:
        tokens: how many.
        gram: sum of ``x x^T``, float32, [in_features, in_features].
        total: sum of x, [in_features].
        magnitude: sum of ``|x|``, [in_features].
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.tokens = 0
        self.gram = torch.zeros(features, features, device=device)
        self.total = torch.zeros(features, device=device)
        self.magnitude = torch.zeros(features, device=device)

    def add(self, x: Tensor) -> None:
        """Count the tokens ``x`` ([tokens, in_features])."""
        x = x.float()
        self.tokens += len(x)
        self.gram += x.T @ x
        self.total += x.sum(0)
        self.magnitude += x.abs().sum(0)


class ModelStatistics:
    """The input statistics of every linear layer of a model's body, by module path.

    Attributes:
        layers: module path to statistics.
        digest: SHA-256 over the token ids that were shown, in order.
        batches, tokens: how many of them; padding is not counted.
    """

    def __init__(self) -> None:
        self.layers: dict[str, InputStatistics] = {}
        self.batches = 0
        self.tokens = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Identity of the calibration data."""
        return self._hash.hexdigest()

    @torch.no_grad()
    def run(self, model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
        """Show the batches to the model.

        Raises:
            UserError: there is no batch.
        """
        device = next(model.parameters()).device
        mask = torch.ones(0, dtype=torch.bool)

        def watch(name: str, linear: nn.Linear) -> Any:
            self.layers[name] = InputStatistics(linear.in_features, linear.weight.device)

            def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                x = arguments[0]
                # [batch, tokens, features] holds one row a token; other shapes (pooled rows) have no padding
                self.layers[name].add(x[mask] if x.shape[:2] == mask.shape else x.reshape(-1, x.shape[-1]))

            return linear.register_forward_pre_hook(hook)

        training = model.training
        model.eval()
        handles = [watch(name, linear) for name, linear in plain_linears(model)]
        try:
            for batch in batches:
                ids = batch["input_ids"].to(device)
                given = batch.get("attention_mask")
                mask = torch.ones_like(ids, dtype=torch.bool) if given is None else given.to(device).bool()
                self._hash.update(ids.cpu().to(torch.int64).numpy().tobytes())
                self.batches += 1
                self.tokens += int(mask.sum())
                model(input_ids=ids, attention_mask=mask.long())
        finally:
            for handle in handles:
                handle.remove()
            model.train(training)
        if not self.batches:
            raise UserError("there are no batches to calibrate on", fix="Give the task a training split.")

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {
            "calibration_digest": self.digest,
            "calibration_batches": self.batches,
            "calibration_tokens": self.tokens,
        }


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor U of the inverse Hessian: ``U^T U = (2 G + lambda I)^-1``, float32, [n, n].

    Row i of U holds what optimal brain surgery needs once the columns before i are fixed: ``U[i, i]^2`` is the
    i-th diagonal entry of the inverse Hessian of the columns from i on (arXiv:2210.17323, section 3, step 3).

    Args:
        gram: sum of ``x x^T``.
        damping: lambda as a share of the Hessian's mean diagonal.
    """
    hessian = 2 * gram.double()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1  # an input that is never on: any weight will do
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor
