from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.errors import UserError
from harness.quantizers.calibrated import awq_factors, gptq
from harness.quantizers.calibration import ModelStatistics, inverse_factor
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.packing import Grid
from tests.quantizers.conftest import batch


def problem(seed: int, rows: int = 8, columns: int = 32) -> tuple[Tensor, Tensor]:
    """A weight, and calibration inputs ([tokens, columns]) with a few loud and correlated columns."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.linspace(0.1, 3, columns)
    return (
        torch.randn(rows, columns, generator=generator),
        torch.randn(256, columns, generator=generator) @ mix.T / columns**0.5,
    )


def output_error(weight: Tensor, decoded: Tensor, x: Tensor) -> float:
    return float(((x @ (weight - decoded).T) ** 2).sum())


def nearest(weight: Tensor, grid: Grid) -> Tensor:
    scale, zero = grid.fit(weight)
    return grid.decode(grid.encode(weight, scale, zero), scale, zero)


def test_inverse_factor_is_cholesky_of_damped_inverse() -> None:
    _, x = problem(0)
    gram = x.T @ x
    factor = inverse_factor(gram, 0.01).double()
    hessian = 2 * gram.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    torch.testing.assert_close(factor.T @ factor @ hessian, torch.eye(32, dtype=torch.float64), atol=1e-3, rtol=1e-3)
    assert torch.equal(factor, factor.triu())


def test_inverse_factor_survives_inputs_that_are_never_on() -> None:
    _, x = problem(0)
    x[:, 3] = 0
    assert torch.isfinite(inverse_factor(x.T @ x, 0.01)).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_beats_rounding_on_the_outputs(bits: int, seed: int) -> None:
    weight, x = problem(seed)
    grid = Grid(bits, 16, False)
    codes, scale, zero = gptq(weight, x.T @ x, grid, 0.01)
    found = output_error(weight, grid.decode(codes, scale, zero), x)
    assert found < 0.8 * output_error(weight, nearest(weight, grid), x)


def test_gptq_step_is_the_paper_s_optimal_update() -> None:
    """Equation 2: once the first weight is rounded, the rest move to the least-squares optimum."""
    weight, x = problem(1, rows=1, columns=6)
    grid = Grid(3, 6, True)
    hessian = 2 * (x.T @ x).double()
    scale, _ = grid.fit(weight)
    rounded = grid.decode(grid.encode(weight[:, :1], scale, None), scale, None)
    error = float(weight[0, 0] - rounded[0, 0])
    rest = hessian[1:, 1:]
    optimum = weight[0, 1:].double() + error * torch.linalg.solve(rest, hessian[1:, 0])
    second = grid.decode(grid.encode(optimum[None, :1].float(), scale, None), scale, None)
    codes, scales, zero = gptq(weight, x.T @ x, grid, 0.0)
    decoded = grid.decode(codes, scales, zero)
    assert decoded[0, 0] == rounded[0, 0]
    assert decoded[0, 1] == second[0, 0]


def test_gptq_with_independent_inputs_is_rounding() -> None:
    weight, _ = problem(2)
    grid = Grid(4, 32, False)
    codes, scale, zero = gptq(weight, torch.eye(32), grid, 0.0)
    torch.testing.assert_close(grid.decode(codes, scale, zero), nearest(weight, grid))


@pytest.mark.parametrize("seed", range(3))
def test_awq_never_worse_than_rounding_better_with_outliers(seed: int) -> None:
    weight, x = problem(seed)
    x[:, :2] *= 30
    grid = Grid(3, 16, False)
    factors = awq_factors(weight, x.T @ x, x.abs().sum(0), grid, 20)
    found = output_error(weight, nearest(weight * factors, grid) / factors, x)
    assert found < 0.7 * output_error(weight, nearest(weight, grid), x)
    assert factors[:2].min() > factors[2:].max()


def test_calibration_counts_unpadded_tokens_and_names_data(load) -> None:
    model = load("none")
    first, again, other = ModelStatistics(), ModelStatistics(), ModelStatistics()
    first.run(model, [batch("causal-lm", 0), batch("causal-lm", 1)])
    again.run(model, [batch("causal-lm", 0), batch("causal-lm", 1)])
    other.run(model, [batch("causal-lm", 1), batch("causal-lm", 0)])
    assert first.facts() == {
        "calibration_digest": first.digest,
        "calibration_batches": 2,
        "calibration_tokens": 2 * (8 * 12 - 4 * 2),
    }
    assert first.digest == again.digest != other.digest
    assert {s.tokens for s in first.layers.values()} == {2 * (8 * 12 - 4 * 2)}
    assert not model.get_submodule("model.layers.0.mlp.up_proj")._forward_pre_hooks


def test_calibration_sees_what_the_layer_sees(load) -> None:
    model, inputs = load("none"), batch("causal-lm")
    seen = []
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    layer.register_forward_pre_hook(lambda _, a: seen.append(a[0][inputs["attention_mask"].bool()]))
    calibration = ModelStatistics()
    calibration.run(model, [inputs])
    statistics = calibration.layers["model.layers.1.mlp.down_proj"]
    torch.testing.assert_close(statistics.gram, seen[0].T @ seen[0])
    torch.testing.assert_close(statistics.magnitude, seen[0].abs().sum(0))
    torch.testing.assert_close(statistics.total, seen[0].sum(0))


def test_no_batches_is_an_error(load) -> None:
    with pytest.raises(UserError, match="no batches to calibrate on"):
        ModelStatistics().run(load("none"), [])


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_the_calibrated_model_follows_its_data_better_than_rtn(load, name: str) -> None:
    plain, rounded, calibrated = (
        load(n, params=p) for n, p in (("none", {}), ("rtn", {"bits": 3}), (name, {"bits": 3}))
    )
    inputs = {k: v for k, v in batch("causal-lm", 3).items() if k != "labels"}
    with torch.no_grad():
        expected, worse, better = (m(**inputs).logits for m in (plain, rounded, calibrated))
    assert (better - expected).norm() < (worse - expected).norm()


def test_a_checkpoint_of_another_kind_is_refused(load) -> None:
    cls = QUANTIZERS.get("prequantized-gptq")
    with pytest.raises(UserError, match="this one is not quantized"):
        cls(cls.resolve({}), "causal-lm").apply(load("none"))
    model = load("none")
    model.config.quantization_config = {"quant_method": "awq", "bits": 4}
    with pytest.raises(UserError, match="quantized with awq at 4 bits"):
        cls(cls.resolve({}), "causal-lm").apply(model)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert cls(cls.resolve({}), "causal-lm").apply(model) is model
