from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.meters.attribution import model_bytes
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.layers import plain_linears
from harness.quantizers.pruning import PATTERNS, keep_mask, sparsegpt
from tests.quantizers.conftest import batch
from tests.quantizers.test_calibrated import output_error, problem

PRUNERS = [n for n in QUANTIZERS.names() if n.startswith("prune-")]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", PRUNERS)
def test_half_of_the_body_and_nothing_else_is_zero(load, name: str, pattern: str) -> None:
    plain, pruned = load("none"), load(name, params={"pattern": pattern})
    body = dict(plain_linears(pruned))
    for path, parameter in pruned.named_parameters():
        if path.removesuffix(".weight") in body:
            assert (parameter == 0).float().mean() == 0.5
            if pattern != "unstructured":
                kept, size = map(int, pattern.split(":"))
                assert ((parameter.reshape(-1, size) != 0).sum(1) == kept).all()
        else:
            torch.testing.assert_close(parameter, plain.get_parameter(path))
    assert model_bytes(pruned) == model_bytes(plain)  # no byte is saved, as declared
    assert torch.isfinite(pruned(**batch("causal-lm")).logits).all()


def test_masks_compete_where_they_should() -> None:
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert keep_mask(score, 0.5, "unstructured", per_row=False).tolist() == [[False] * 4, [True] * 4]
    assert keep_mask(score, 0.5, "unstructured", per_row=True).tolist() == [[False, False, True, True]] * 2
    assert keep_mask(score, 0.25, "unstructured", per_row=True).sum() == 6
    assert keep_mask(score.flip(1), 0.5, "2:4", per_row=False).tolist() == [[True, True, False, False]] * 2


def test_wanda_reads_its_inputs() -> None:
    cls = QUANTIZERS.get("prune-wanda")
    pruner: Any = cls(cls.resolve({}), "causal-lm")
    pruner.gram = lambda _: torch.diag(torch.tensor([100.0, 1.0, 1.0, 1.0]) ** 2)
    weight = torch.tensor([[0.1, 0.5, -0.6, 0.4]])
    assert pruner.prune("x", weight).tolist() == torch.tensor([[0.1, 0.0, -0.6, 0.0]]).tolist()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_beats_masking_alone(seed: int, pattern: str) -> None:
    weight, x = problem(seed)
    gram = x.T @ x
    wanda = weight * keep_mask(weight.abs() * gram.diagonal().sqrt(), 0.5, pattern, per_row=True)
    pruned = sparsegpt(weight, gram, 0.5, pattern, 0.01)
    assert output_error(weight, pruned, x) < 0.8 * output_error(weight, wanda, x)


def test_sparsegpt_s_kept_weights_are_the_least_squares_optimum() -> None:
    """With the first column's weight removed (equation 3), the rest minimise the output error exactly."""
    _, x = problem(0, rows=1, columns=8)
    weight = torch.tensor([[0.0, 1, 1, 1, 1, 1, 1, 1]])
    weight[0, 0] = 1e-4  # certainly the one to go
    gram = x.T @ x
    pruned = sparsegpt(weight, gram, 1 / 8, "unstructured", 0.0)
    optimum = weight[0, 1:].double() + 1e-4 * torch.linalg.solve(gram[1:, 1:].double(), gram[1:, 0].double())
    assert pruned[0, 0] == 0
    torch.testing.assert_close(pruned[0, 1:].double() - 1, optimum - 1, rtol=0, atol=5e-7)


def test_what_happened_is_recorded(load) -> None:
    cls = QUANTIZERS.get("prune-wanda")
    pruner = cls(cls.resolve({"sparsity": 0.75}), "causal-lm")
    model = load("none")
    pruner.calibrate(model, lambda n: [batch("causal-lm", seed) for seed in range(n)])
    pruner.apply(model)
    facts = pruner.facts()
    assert facts["sparsity"] == 0.75
    assert facts["calibration_batches"] == 16


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ({"sparsity": 1.5}, "sparsity must lie between 0 and 1"),
        ({"pattern": "1:3"}, "pattern '1:3' is not known"),
        ({"pattern": "2:4", "sparsity": 0.7}, "pattern 2:4 is a sparsity of 0.5"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        QUANTIZERS.get("prune-wanda").resolve(params)


def test_rows_that_do_not_fit_the_pattern_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 4 weights, not 6"):
        keep_mask(torch.ones(2, 6), 0.5, "2:4", per_row=False)
