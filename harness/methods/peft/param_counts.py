"""Number of trainable parameters of each peft method, by formula from the sizes of the layers it targets.

Written from the methods' definitions and kept apart from peft, because the count is a check on peft: an option that
it ignores shows here. Notation: a target maps n inputs to m outputs; r is the rank; k runs over the targets.
Every function takes the targets, the method's configuration (attributes as in peft) and the base model.
"""

# ruff: noqa: ARG001 - all formulas take the same arguments, although each reads only some of them

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.methods.modules import Linear

if TYPE_CHECKING:  # heavy, and only for types
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

Count = Callable[[Sequence[Linear], "PeftConfig", "nn.Module"], "int | None"]


def formula(count: Count) -> str:
    """A formula in words: the first line of its docstring."""
    return (count.__doc__ or "").partition("\n")[0]


def rank(config: PeftConfig, name: str) -> int:
    """The rank of one target: the configuration's, unless its ``rank_pattern`` names the target."""
    for pattern, value in (getattr(config, "rank_pattern", None) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return int(value)
    return int(config.r)


def low_rank(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m): a factor r × n and a factor m × r; DoRA adds m magnitudes, a LoRA bias adds m."""
    per_output = int(getattr(config, "use_dora", False)) + int(getattr(config, "lora_bias", False))
    return sum(rank(config, t.name) * (t.inputs + t.outputs) + per_output * t.outputs for t in targets)


def ia3(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ m, or n for a feed-forward target, whose input is scaled."""
    feedforward = tuple(config.feedforward_modules or ())
    return sum(t.inputs if t.name.endswith(feedforward) else t.outputs for t in targets)


def prompt(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """v·d: v virtual tokens of the embedding's width d."""
    return int(config.num_virtual_tokens) * _width(model)


def prompt_encoder(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int | None:
    """v·d and an encoder of hidden width h, an MLP: (d+1)h + (h+1)h + (h+1)d; unknown for the LSTM."""
    if str(getattr(config.encoder_reparameterization_type, "value", config.encoder_reparameterization_type)) != "MLP":
        return None
    d = _width(model)
    h = int(config.encoder_hidden_size or d)
    return int(config.num_virtual_tokens) * d + (d + 1) * h + (h + 1) * h + (h + 1) * d


def prefix(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """v·2·L·d_kv: a key and a value per block; with a projection of width h: v·d + (d+1)h + (h+1)·2·L·d."""
    settings: PreTrainedConfig = model.config
    layers = int(settings.get_text_config().num_hidden_layers)
    v = int(config.num_virtual_tokens)
    if config.prefix_projection:
        d = _width(model)
        h = int(config.encoder_hidden_size or d)
        return v * d + (d + 1) * h + (h + 1) * 2 * layers * d
    return v * 2 * layers * _key_width(model)


def _width(model: nn.Module) -> int:
    like: PreTrainedModel = model
    return int(like.get_input_embeddings().embedding_dim)


def _key_width(model: nn.Module) -> int:
    """Width of one block's keys: key-value heads times the head's width."""
    model_config: PreTrainedConfig = model.config
    config = model_config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int((getattr(config, "num_key_value_heads", None) or heads) * width)


# --- LoRA's relatives ----------------------------------------------------------------------------
def frozen_down(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r·m: the factor that meets the input is frozen, only the one that makes the output is trained."""
    return sum(rank(config, t.name) * t.outputs for t in targets)


def frozen_up(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r·n: the factor that makes the output is frozen, only the one that meets the input is trained."""
    return sum(rank(config, t.name) * t.inputs for t in targets)


def low_rank_diagonal(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m + 1): two factors and r singular values between them."""
    return sum(rank(config, t.name) * (t.inputs + t.outputs + 1) for t in targets)


def adaptive(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r₀(n + m + 1) with the initial rank r₀, before any of it is pruned."""
    return sum(int(config.init_r) * (t.inputs + t.outputs + 1) for t in targets)


def low_rank_scalar(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m) + 1: two factors and one trained length per target."""
    return sum(rank(config, t.name) * (t.inputs + t.outputs) + 1 for t in targets)


def sampled(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m) + r + S: two factors, a deviation per rank and the weights of S samples."""
    samples = int(config.monteclora_config.num_samples)
    return sum((r := rank(config, t.name)) * (t.inputs + t.outputs) + r + samples for t in targets)


def pooled(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n/g + m): the input is pooled in groups of g before the first factor."""
    return sum(rank(config, t.name) * (t.inputs // int(config.qalora_group_size) + t.outputs) for t in targets)


def block_diagonal(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m), where the factor that is block-diagonal in b blocks holds 1/b of its entries."""
    blocks = config.use_bdlora
    total = 0
    for t in targets:
        by_a = any(pattern in t.name for pattern in blocks.target_modules_bd_a or ())
        by_b = any(pattern in t.name for pattern in blocks.target_modules_bd_b or ())
        n = t.inputs // blocks.nblocks if by_a else t.inputs
        m = t.outputs // blocks.nblocks if by_b else t.outputs
        total += rank(config, t.name) * (n + m)
    return total


def hadamard(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ 2r(n + m): two pairs of factors, multiplied entry by entry."""
    return 2 * sum(rank(config, t.name) * (t.inputs + t.outputs) for t in targets)


def kronecker(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ ac + bd, m = a·b and n = c·d as square as possible; b × d is factored where that needs less: r(b + d)."""
    total = 0
    for t in targets:
        r = rank(config, t.name)
        a, b = _factor(t.outputs, int(config.decompose_factor))
        c, d = _factor(t.inputs, int(config.decompose_factor))
        small = r * (a + c) if config.decompose_both and r < max(a, c) / 2 else a * c
        total += small + (r * (b + d) if r < max(b, d) / 2 else b * d)
    return total


def _factor(size: int, limit: int) -> tuple[int, int]:
    """The divisors a ≤ b of ``size`` nearest to each other (a at most ``limit``, if that is positive)."""
    if limit > 0 and size % limit == 0:
        return limit, size // limit
    best = max(a for a in range(1, int(size**0.5) + 1) if size % a == 0 and (limit <= 0 or a <= limit))
    return best, size // best


def granular(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m), cut into k × k blocks; an additional plain pair of rank h adds h(n + m)."""
    return sum((int(config.r) + int(config.hybrid_r)) * (t.inputs + t.outputs) for t in targets)


def general(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int | None:
    """Σ 2r(n + m), and with a bias r(n + 1) for the prompt and two scalars; for the default paths only."""
    if (config.config_A_B, config.config_C, config.config_D_E) != ("lora", "lora", "constant"):
        return None
    r = int(config.r)
    return sum(2 * r * (t.inputs + t.outputs) + (r * (t.inputs + 1) + 2 if t.bias else 0) for t in targets)


def experts(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Layers with the same name and sizes share: B, E·r·m, once; A, r·n, per s layers; a router, E·r, per layer."""
    groups: dict[tuple[str, int, int], int] = {}
    for t in targets:
        key = (t.name.rsplit(".", 1)[-1], t.inputs, t.outputs)
        groups[key] = groups.get(key, 0) + 1
    r, e, stride = int(config.r), int(config.num_B), int(config.stride_A)
    return sum(e * r * m + -(-layers // stride) * r * n + layers * e * r for (_, n, m), layers in groups.items())


def poly(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ skills·r(n + m) and one router entry per task, split and skill."""
    k = int(config.n_skills)
    return sum(k * int(config.r) * (t.inputs + t.outputs) + k * config.n_tasks * config.n_splits for t in targets)


def nonlinear(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ 2rm + d·r²: a small network of d inner layers that reads the weight's outputs."""
    r = int(config.r)
    return sum(2 * r * t.outputs + int(config.depth) * r * r for t in targets)


# --- shared or random projections, few trained numbers -----------------------------------------------
def vera(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ m + r: a scale per output and one per rank; the random factors are shared and frozen."""
    return sum(t.outputs + int(config.r) for t in targets)


def pvera(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ m + 2r: as VeRA, with a mean and a deviation per rank."""
    return sum(t.outputs + 2 * int(config.r) for t in targets)


def random_full_rank(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ k(r + min(n, m)) with k = ⌈min(n, m)/r⌉ random bases."""
    total = 0
    for t in targets:
        least = min(t.inputs, t.outputs)
        total += -(-least // int(config.r)) * (int(config.r) + least)
    return total


def frequencies(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ f: the chosen coefficients of one transform per target."""
    pattern = getattr(config, "n_frequency_pattern", None) or {}
    return sum(
        next((int(v) for k, v in pattern.items() if re.fullmatch(rf"(.*\.)?({k})", t.name)), int(config.n_frequency))
        for t in targets
    )


def vector_bank(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """h·b for a bank of h vectors of length b, shared, and Σ r·h(n + m)/b logits that choose from it."""
    h, b = int(config.num_vectors), int(config.vector_length)
    return h * b + sum(int(config.r) * h * (t.inputs // b + t.outputs // b) for t in targets)


def one_vector(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """d: one vector, from which every factor of every target is read."""
    return int(config.theta_d_length)


def tiny(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int | None:
    """u per target; unknown where targets share theirs."""
    return None if config.weight_tying else int(config.u) * len(targets)


def common_basis(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ n + ⌊ρn²⌋: a diagonal and a share ρ of an n × n matrix, in a basis shared by the targets."""
    return sum(t.inputs + int(config.sparse_rate * t.inputs * t.inputs) for t in targets)


def circular(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ nm/b: b × b circulant blocks, each b numbers."""
    return sum(t.inputs * t.outputs // int(config.block_size) for t in targets)


# --- orthogonal transforms ---------------------------------------------------------------------------
def orthogonal_blocks(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ (n/b)·b(b-1)/2: a skew-symmetric matrix per block of b inputs; b = n/r where r blocks are asked for."""
    total = 0
    for t in targets:
        b = int(config.oft_block_size) or t.inputs // int(config.r)
        total += (1 if config.block_share else t.inputs // b) * (b * (b - 1) // 2)
    return total


def butterfly(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ f·n·b + m: f butterfly factors of n/b blocks, and a scale per output."""
    b, factors = int(config.boft_block_size), int(config.boft_n_butterfly_factor)
    return sum(factors * t.inputs * b + t.outputs for t in targets)


def householder(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r·n: r reflections of the input."""
    return sum(int(config.r) * t.inputs for t in targets)


def principal(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(r-1)/2 + 2r: a rotation of the principal subspace and two scales of it."""
    r = int(config.r)
    inner = r * (r - 1) // 2 if config.psoft_orth else r * r
    return len(targets) * (inner + r * (int(config.psoft_mag_a) + int(config.psoft_mag_b)))


def rotation_pairs(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ m, 2m or 4m: an angle and a scale per pair of outputs (variants road_1, road_2, road_4)."""
    return {"road_1": 1, "road_2": 2, "road_4": 4}[config.variant] * sum(t.outputs for t in targets)


def low_singular(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ k(n + m + 1), k the kept rank (half of the smaller side unless set): the directions the base uses least."""
    total = 0
    for t in targets:
        least = min(t.inputs, t.outputs)
        wanted = config.effective_rank
        if wanted is None:
            k = least // 2
        else:
            k = min(least, int(least * wanted) if isinstance(wanted, float) and wanted <= 1 else int(wanted))
        total += k * (t.inputs + t.outputs + 1)
    return total


# --- shards, sparse entries, vectors -----------------------------------------------------------------
def shards(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r·m: one block, repeated along the input (weight-guided: m/r blocks of r × r, as many)."""
    per_shard = int(config.mini_r) if config.init_weights == "mini" else 0
    return sum(int(config.r) * (per_shard or t.outputs) for t in targets)


def sparse(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ r(n + m) single entries of the weight: as many as LoRA of rank r would train."""
    return sum(int(config.r) * (t.inputs + t.outputs) for t in targets)


def largest_entries(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int | None:
    """Σ ⌊(1 - s)nm⌋ entries at sparsity s; unknown with an additional low-rank part."""
    if config.r:
        return None
    return sum(int((1 - config.sparsity) * (t.inputs * t.outputs)) for t in targets)


def outputs_of_targets(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """Σ m: one number per output."""
    return sum(t.outputs for t in targets)


def norms(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """All parameters of the normalisation layers."""
    return sum(
        p.numel() for m in model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(recurse=False)
    )


def token_rows(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """k·d: the embeddings of k tokens."""
    return len(set(config.token_indices)) * _width(model)


# --- prompts ---------------------------------------------------------------------------------------------
def multitask_prompt(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """v·d and a low-rank factor per task: t·k(v + d)."""
    v, d = int(config.num_virtual_tokens), _width(model)
    return v * d + int(config.num_tasks) * int(config.num_ranks) * (v + d)


def context_prompt(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """c·d: an offset for each of the c context tokens."""
    return len(config.cpt_token_ids) * _width(model)


def cartridge(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """(v - f)·2·L·d_kv: a trained key-value cache whose first f entries stay as they are."""
    settings: PreTrainedConfig = model.config
    layers = int(settings.get_text_config().num_hidden_layers)
    return (int(config.num_virtual_tokens) - int(config.num_frozen_tokens)) * 2 * layers * _key_width(model)


def adaption_prompt(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> int:
    """a(v·d + 1): v prompts and a gate in each of the a upper layers."""
    return int(config.adapter_layers) * (int(config.adapter_len) * _width(model) + 1)


def unknown(targets: Sequence[Linear], config: PeftConfig, model: nn.Module) -> None:
    """No closed form: the size depends on the values of the base's weights or on a second model."""
    return
