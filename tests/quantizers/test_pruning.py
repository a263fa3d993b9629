from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.meters.attribution import model_bytes
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.layers import plain_linears
from harness.quantizers.pruning import PATTERNS, dsnot, keep_mask, sparsegpt
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
        ({"sparsity": 1.5}, "sparsity must be between 0 and 1"),
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


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_dsnot_lowers_mean_output_error_of_moved_rows(seed: int, pattern: str) -> None:
    weight, x = problem(seed)
    x = x + 1.0  # inputs with a mean, or there is nothing to correct
    norm, mean, variance = x.norm(dim=0), x.mean(0), x.var(0, unbiased=False)
    before = keep_mask(weight.abs() * norm, 0.5, pattern, per_row=True)
    after = dsnot(weight, before, mean, variance, norm, pattern, cycles=50, threshold=1e-6)
    errors = [(x @ (weight * ~mask).T).mean(0).abs() for mask in (before, after)]
    assert (errors[1] <= errors[0] + 1e-4).all()
    assert errors[1].mean() < 0.7 * errors[0].mean()
    assert torch.equal(before.sum(1), after.sum(1))
    if pattern != "unstructured":
        kept, size = map(int, pattern.split(":"))
        assert (after.reshape(-1, size).sum(1) == kept).all()


def test_dsnot_s_first_pair_is_the_paper_s() -> None:
    """Equations 5 and 6 by hand: one row, four inputs; the error is -(2 * 1) - (1 * 1) = -3."""
    weight = torch.tensor([[4.0, 2.0, 1.0, -3.0]])
    keep = torch.tensor([[True, False, False, True]])
    mean, variance, norm = torch.ones(4), torch.tensor([1.0, 4.0, 1.0, 1.0]), torch.ones(4)
    # growing restores what its variance lets one trust: 1/1 before 2/4; of the kept ones only -3 brings -3 nearer to 0
    found = dsnot(weight, keep, mean, variance, norm, "unstructured", cycles=1, threshold=0.1)
    assert found.tolist() == [[True, False, True, False]]
