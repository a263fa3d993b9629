"""The bottleneck, and how it is attached to a feed-forward layer of any architecture."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.methods.delta import device_of
from harness.methods.modules import FeedForward

NAME = "bottleneck"
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


class Bottleneck(nn.Module):
    """``scale U f(D x)`` without biases, in float32 on every base; U begins at zero, so that nothing is added at first.

    Args:
        inputs: n, width of x.
        outputs: m.
        width: b, of the bottleneck.
        function: f, a name in :data:`FUNCTIONS`.
        scale: what the result is multiplied by.
        uniform: D is drawn as LoRA's first factor, uniformly; else normally with a standard deviation of 0.02.
        generator: draws D, on the CPU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        function: str,
        scale: float,
        uniform: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        drawn = torch.empty(width, inputs, device="cpu")
        if uniform:
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        else:
            drawn.normal_(std=0.02, generator=generator)
        self.down = nn.Parameter(drawn)
        self.up = nn.Parameter(torch.zeros(outputs, width))
        self.function = FUNCTIONS[function]
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the dtype of its weights."""
        return self.scale * nn.functional.linear(
            self.function(nn.functional.linear(x.to(self.down.dtype), self.down)), self.up
        )


def hang_after(model: nn.Module, place: FeedForward, bottleneck: Bottleneck) -> None:
    """In series: the bottleneck reads what the feed-forward layer gives, and its own is added to that."""

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        added: Tensor = bottleneck(output)
        return output + added.to(output.dtype)

    last = model.get_submodule(place.last.name)
    last.add_module(NAME, bottleneck.to(device_of(last)))
    last.register_forward_hook(add)


def hang_beside(model: nn.Module, place: FeedForward, bottleneck: Bottleneck) -> None:
    """In parallel: the bottleneck reads what the feed-forward layer is given, and its own is added to the result."""
    given: list[Tensor] = []

    def take(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given[:] = [inputs[0]]

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        added: Tensor = bottleneck(given.pop())
        return output + added.to(output.dtype)

    first, last = model.get_submodule(place.first.name), model.get_submodule(place.last.name)
    last.add_module(NAME, bottleneck.to(device_of(last)))
    first.register_forward_pre_hook(take)
    last.register_forward_hook(add)
