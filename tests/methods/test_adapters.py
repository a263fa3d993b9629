"""Bottleneck adapters: their input and output positions, against the equations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import Unsupported, UserError
from harness.methods.adapters.network import NAME
from harness.methods.modules import feed_forwards
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, gap, made, train


def adapted(name: str, kind: str, **params: Any) -> nn.Module:
    """In float64, with every bottleneck away from its start."""
    model = attached(made(name, kind, bottleneck=6, **params), base(kind)).double()
    torch.manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if f".{NAME}." in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def seen(model: nn.Module, kind: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of the linear layers and blocks by name, on the batch."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, given, out, name=name: found.__setitem__(name, (given[0], out))  # type: ignore[misc]  # a test's hook
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        model(**{k: v for k, v in batch(kind).items() if k != "labels"})
    for hook in hooks:
        hook.remove()
    return found


def by_hand(module: Any, x: torch.Tensor, function: Any, scale: float) -> torch.Tensor:
    """a U f(D x), with plain products."""
    held = getattr(module, NAME)
    assert held.down.dtype == torch.float64
    return scale * (function(x @ held.down.T) @ held.up.T)


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_series_adapter_reads_the_layer_output(kind: str) -> None:
    model = adapted("series-adapter", kind, scale=0.5)
    places = feed_forwards(base(kind))
    found = seen(model, kind)
    assert len(places) == 2
    for place in places:
        module: Any = model.get_submodule(place.last.name)
        x, y = found[place.last.name]
        h = nn.functional.linear(x, module.weight, module.bias)
        assert gap(y, h + by_hand(module, h, torch.tanh, 0.5)) < 1e-12
        assert gap(y, h) > 1e-3


@pytest.mark.parametrize(
    ("name", "function", "scale"), [("parallel-adapter", torch.tanh, 1.0), ("mam", torch.relu, 4.0)]
)
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_parallel_adapter_reads_feed_forward_input(kind: str, name: str, function: Any, scale: float) -> None:
    model = adapted(name, kind)
    inner = model.get_base_model() if name == "mam" else model  # type: ignore[operator]  # peft's own
    found = seen(inner, kind)
    for place in feed_forwards(base(kind)):
        module: Any = inner.get_submodule(place.last.name)
        given, _ = found[place.first.name]
        x, y = found[place.last.name]
        h = nn.functional.linear(x, module.weight, module.bias)
        assert gap(y, h + by_hand(module, given, function, scale)) < 1e-12
        assert gap(y, h) > 1e-3


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_mam_is_a_prefix_of_30_tokens_and_a_wide_adapter(kind: str) -> None:
    method = made("mam", kind)
    model: Any = attached(method, base(kind))
    prefix = model.prompt_encoder["default"].embedding.weight
    assert prefix.shape[0] == 30
    widths: set[int] = set()
    inner = model.get_base_model()
    _, layers = next((n, m) for n, m in inner.named_modules() if isinstance(m, nn.ModuleList))
    attention = layers[0].self_attn if kind == CAUSAL else layers[0].attention.self
    projection = attention.k_proj if kind == CAUSAL else attention.key
    own = batch(kind)["input_ids"].shape[1]
    original = nn.functional.scaled_dot_product_attention

    def watched(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        widths.add(key.shape[-2])
        return original(query, key, value, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", watched)
        with torch.no_grad():
            model(**batch(kind))
    assert widths == {30 + own}
    assert projection.in_features == 64
    before = prefix.detach().clone()
    assert not {n for n in train(method, model) if "prompt_encoder" in n or NAME in n}
    assert gap(prefix, before) > 1e-5


def test_missing_feed_forward_and_unknown_function_are_named() -> None:
    model: Any = base(CAUSAL)
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(Unsupported, match="block 1 of LlamaForCausalLM has no feed-forward part"):
        feed_forwards(model)
    with pytest.raises(UserError, match=r"series-adapter has no activation function 'tahn'.*Did you mean 'tanh'"):
        made("series-adapter", function="tahn")
