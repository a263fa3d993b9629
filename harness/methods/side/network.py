"""The side network itself, and how it listens to a backbone of any architecture.

Hooks take the output of every block of the backbone, detached. When the last block has run, the side network runs on
the collected states, and its result replaces the last block's output: the backbone's own final norm and head follow.
Nothing below that point requires a gradient, so that no activation of the backbone is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from harness.methods.modules import blocks

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import Cache, PreTrainedConfig

LEAST_WIDTH = 16
"""Narrowest side network: below it a model of a few hundred channels would leave attention nothing to compare."""
HEAD_WIDTH = 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of a side network.

    Attributes:
        hidden: width of the backbone.
        width: of the side network.
        inner: of its feed-forward layers.
        depth: number of blocks, the backbone's.
        causal: whether a position sees only those before it, as in the backbone.
    """

    hidden: int
    width: int
    inner: int
    depth: int
    causal: bool

    @classmethod
    def of(cls, model: nn.Module, reduction: int) -> Sizes:
        """``reduction`` times narrower than the backbone, though never below :data:`LEAST_WIDTH`."""
        config: PreTrainedConfig = model.config
        text = config.get_text_config()
        _, layers = blocks(model)
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        return cls(
            hidden=int(text.hidden_size),
            width=max(LEAST_WIDTH, int(text.hidden_size) // reduction // 2 * 2),
            inner=max(LEAST_WIDTH, int(inner) // reduction),
            depth=len(layers),
            causal=any(getattr(module, "is_causal", False) for module in layers[0].modules()),
        )

    @property
    def heads(self) -> int:
        """Attention heads, of about :data:`HEAD_WIDTH` channels and an even number of them."""
        wanted = range(max(1, self.width // HEAD_WIDTH), 0, -1)
        return next(h for h in wanted if self.width % (2 * h) == 0)

    @property
    def block_parameters(self) -> int:
        """Of one :class:`SideBlock`: four attention matrices, three of the feed-forward layer, two norms."""
        return 4 * self.width**2 + 3 * self.width * self.inner + 2 * self.width


class SideBlock(nn.Module):
    """Pre-norm transformer block: attention with rotary positions, then a gated feed-forward layer; no biases."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d, f = sizes.width, sizes.inner
        self.heads = sizes.heads
        self.attention_norm, self.forward_norm = nn.RMSNorm(d), nn.RMSNorm(d)
        self.query, self.key, self.value, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(d, f, bias=False),
            nn.Linear(d, f, bias=False),
            nn.Linear(f, d, bias=False),
        )

    def forward(self, x: Tensor, padding: Tensor | None, *, causal: bool, cached: Any = None) -> Tensor:
        """One block.

        Args:
            x: [batch, positions, width].
            padding: [batch, all positions], true at tokens that count; None if all do.
            causal: whether later positions are hidden.
            cached: a layer of a key-value cache that this block's keys and values are appended to, or None.
        """
        normed = self.attention_norm(x)
        q, k, v = (self._split(projection(normed)) for projection in (self.query, self.key, self.value))
        before = int(cached.get_seq_length()) if cached is not None else 0
        q, k = rotate(q, before), rotate(k, before)
        if cached is not None:
            k, v = cached.update(k, v)
        mask = visible(q.shape[-2], k.shape[-2], padding, causal=causal, device=x.device)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.forward_norm(x)
        return x + cast(Tensor, self.down(nn.functional.silu(self.gate(normed)) * self.up(normed)))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)


def rotate(x: Tensor, start: int) -> Tensor:
    """Rotary positions (arXiv:2104.09864) ``start``, ``start`` + 1, ... on [batch, heads, positions, channels]."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def visible(queries: int, keys: int, padding: Tensor | None, *, causal: bool, device: torch.device) -> Tensor:
    """Keys visible to the last ``queries`` of ``keys`` positions: bool, [batch or 1, 1, queries, keys].

    Every position sees itself, padding too: attention over nothing would be no number, and spread from there.
    """
    at = torch.arange(keys, device=device)
    own = at[None] == at[keys - queries :, None]
    seen = at[None] <= at[keys - queries :, None] if causal else torch.ones_like(own)
    if padding is None:
        return seen[None, None]
    return (seen & padding[:, None, None, :].bool()) | own


class SideNetwork(nn.Module):
    """Blocks in parallel to a backbone. What goes in and how it comes out is up to the subclass."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.blocks = nn.ModuleList(SideBlock(sizes) for _ in range(sizes.depth))

    after_norm = False
    """True if the result replaces the final norm's output (if there is one) instead of its input."""

    def entering(self, index: int, tapped: Tensor, state: Tensor) -> Tensor:
        """Input of block ``index``: the backbone's output there and the side network's so far."""
        raise NotImplementedError

    def beginning(self, embedded: Tensor) -> Tensor:
        """The side network's state before its first block, from the backbone's embeddings."""
        raise NotImplementedError

    def leaving(self, state: Tensor, last: Tensor) -> Tensor:
        """Replacement of ``last``, the output of the backbone's last block."""
        raise NotImplementedError

    def forward(self, taps: list[Tensor], padding: Tensor | None, cache: Cache | None = None) -> Tensor:
        """Run over what was taken from the backbone.

        Args:
            taps: the first block's input and every block's output, [batch, positions, hidden] each, detached; with
                ``after_norm`` the last one normalised, behind them.
            padding: see :class:`SideBlock`.
            cache: the backbone's key-value cache; the side network's keys and values become additional layers of it.
        """
        state = self.beginning(taps[0].float())
        for index, block in enumerate(self.blocks):
            cached = _further_layer(cache, self.sizes.depth + index) if cache is not None else None
            entering = self.entering(index, taps[index + 1].float(), state)
            state = block(entering, padding, causal=self.sizes.causal, cached=cached)
        return self.leaving(state, taps[-1].float())


def _further_layer(cache: Cache, index: int) -> object:
    """Layer ``index`` of a cache, which grows by plain layers up to there."""
    from transformers.cache_utils import DynamicLayer

    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    return cache.layers[index]


def listen(model: nn.Module, side: SideNetwork) -> None:
    """Hook the side network into the backbone; it must already be a submodule of ``model``."""
    _, layers = blocks(model)
    norm = final_norm(model) if side.after_norm else None
    taps: list[Tensor] = []
    seen: dict[str, Any] = {}

    def begin(_module: nn.Module, _args: object, kwargs: dict[str, object]) -> None:
        taps.clear()
        seen["padding"] = kwargs.get("attention_mask")

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taps.append((args[0] if args else kwargs["hidden_states"]).detach())

    def leave(module: nn.Module, _args: object, kwargs: dict[str, object], output: Any) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        taps.append(hidden.detach())
        if module is layers[-1] and norm is not None:
            seen["cache"] = kwargs.get("past_key_values")  # the norm, which runs next, does not know of it
        if module is not (layers[-1] if norm is None else norm):
            return output
        cache = kwargs.get("past_key_values") if norm is None else seen["cache"]
        found = side(list(taps), seen["padding"], cache).to(hidden.dtype)
        taps.clear()  # or they would live until the next batch
        return (found, *output[1:]) if isinstance(output, tuple) else found

    model.register_forward_pre_hook(begin, with_kwargs=True)
    layers[0].register_forward_pre_hook(enter, with_kwargs=True)
    for layer in (*layers, *([norm] if norm is not None else [])):
        layer.register_forward_hook(leave, with_kwargs=True)


NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


def final_norm(model: nn.Module) -> nn.Module | None:
    """The normalisation between the last block and the head, outside the blocks; None if blocks end in one."""
    prefix, _ = blocks(model)
    parent = model.get_submodule(prefix.rpartition(".")[0])
    return next(
        (getattr(parent, name) for name in NORM_NAMES if isinstance(getattr(parent, name, None), nn.Module)), None
    )


class Adapter(nn.Module):
    """hidden -> rank -> width with a swish between, normalised: hidden states differ in size from block to block."""

    def __init__(self, sizes: Sizes, rank: int) -> None:
        super().__init__()
        self.into = nn.Linear(sizes.hidden, rank, bias=False)
        self.out = nn.Linear(rank, sizes.width, bias=False)
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to [..., width]."""
        return cast(Tensor, self.norm(self.out(nn.functional.silu(self.into(hidden)))))


class GatedNetwork(SideNetwork):
    """See :class:`harness.methods.side.qst.QST`.

    Args:
        sizes: of the network.
        rank: of its adapters.
        released: the network of the released code: the output's gate is sig(a) instead of a, the embeddings go through
            the first block's adapter, the side state is normalised before it goes back up, the up-projection has a
            bias, and the mix is made of the backbone's *normalised* hidden state and goes to the head as it is.
    """

    def __init__(self, sizes: Sizes, rank: int, *, released: bool) -> None:
        super().__init__(sizes)
        self.after_norm = released
        if not released:
            self.first = Adapter(sizes, rank)
        self.adapters = nn.ModuleList(Adapter(sizes, rank) for _ in range(sizes.depth))
        self.gates = nn.ParameterList(torch.full((sizes.width,), 0.5) for _ in range(sizes.depth))
        self.back = nn.Linear(sizes.width, sizes.hidden, bias=released)
        if released:
            self.side_norm = nn.RMSNorm(sizes.width)
        self.share = nn.Parameter(torch.ones(sizes.hidden))

    def beginning(self, embedded: Tensor) -> Tensor:
        """The embeddings through their adapter."""
        adapter = self.adapters[0] if self.after_norm else self.first
        return cast(Tensor, adapter(embedded))

    def entering(self, index: int, tapped: Tensor, state: Tensor) -> Tensor:
        """A gate per channel weighs the backbone against the side network."""
        gate = torch.sigmoid(self.gates[index])
        return (1 - gate) * cast(Tensor, self.adapters[index](tapped)) + gate * state

    def leaving(self, state: Tensor, last: Tensor) -> Tensor:
        """A share of the backbone's last hidden state and the rest of the side network's."""
        if not self.after_norm:
            return self.share * last + (1 - self.share) * cast(Tensor, self.back(state))
        share = torch.sigmoid(self.share)
        return share * last + (1 - share) * cast(Tensor, self.back(self.side_norm(state)))
