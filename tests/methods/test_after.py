"""After training: compression of an adapter, rules that combine task vectors, and differences moved to another base."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import Unsupported, UserError
from harness.methods.base import Ingredient, Workshop
from harness.methods.catalog import METHODS
from harness.methods.merging import rules
from harness.methods.merging.compeft import is_head, trained
from harness.methods.merging.merge_adapters import TABLE
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, finalized, gap, llama, logits, made, train


def nll(model: nn.Module, kind: str = CAUSAL) -> float:
    with torch.no_grad():
        return float(model.eval()(**batch(kind, seed=2)).loss)


# --- ComPEFT -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_compeft_leaves_three_values_and_a_small_file(kind: str, tmp_path: Path) -> None:
    method = made("compeft", kind, density=0.1, scale=2.0)
    model = attached(method, base(kind))
    start = {n: p.detach().clone() for n, p in trained(model)}
    train(method, model)
    tau = torch.cat([(p.detach() - start[n]).flatten() for n, p in trained(model) if not is_head(n)])
    heads = {n: p.detach().clone() for n, p in trained(model) if is_head(n)}
    finalized(method, model)
    after = torch.cat([(p.detach() - start[n]).flatten() for n, p in trained(model) if not is_head(n)])
    length = 2.0 * float(tau.std())
    assert set(after.div(length).round(decimals=3).unique().tolist()) <= {-1.0, 0.0, 1.0}
    kept = after.abs() > 0.5 * length
    assert int(kept.sum()) == round(0.1 * len(tau))
    assert float(tau.abs()[kept].min()) >= float(tau.abs()[~kept].max())  # the largest ones
    assert torch.equal(after[kept].sign(), tau[kept].sign())
    assert all(torch.equal(p, heads[n]) for n, p in trained(model) if is_head(n))
    method.save(model, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = 4 * len(tau)
    dense = sum(4 * p.numel() for n, p in trained(model) if is_head(n))
    assert file.stat().st_size - dense < whole / 20


def test_compeft_chooses_on_validation_and_says_what() -> None:
    method = made("compeft")
    model = attached(method, base(CAUSAL))
    train(method, model)
    scores: list[float] = []

    def scored(candidate: nn.Module) -> float:
        scores.append(nll(candidate))
        return scores[-1]

    method.finalize(model, Workshop(scored, (), llama))
    assert len(scores) == 5 * 8
    assert nll(model) == pytest.approx(min(scores))
    assert method.facts().keys() == {"density", "scale"}
    with pytest.raises(UserError, match="no validation split"):
        method.finalize(model, Workshop(None, (), llama))


def test_compeft_takes_adapters_that_start_from_the_seed() -> None:
    cls = METHODS.get("compeft")
    assert cls.resolve({"of": "lora", "r": 2})["r"] == 2
    assert cls.declared(cls.resolve({"of": "vera"})).lr_factor == METHODS.get("vera").declaration.lr_factor
    assert "bnb-int8" not in cls.declared(cls.resolve({"of": "dora"})).bases
    for other in ("pissa", "full"):
        with pytest.raises(UserError, match="starts from the seed alone"):
            cls.resolve({"of": other})
    with pytest.raises(UserError, match="density of compeft must be auto or a number above 0, not 2"):
        cls.resolve({"density": 2})


# --- the rules, on vectors that can be followed by hand ------------------------------------------
TAU = torch.tensor([[4.0, -1.0, 0.2, 0.0], [2.0, 3.0, -0.1, 0.0]])


def test_mean_and_total() -> None:
    assert rules.mean(TAU).tolist() == pytest.approx([3.0, 1.0, 0.05, 0.0])
    assert rules.total(TAU).tolist() == pytest.approx([6.0, 2.0, 0.1, 0.0])


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    # half of each is kept: [4, -1, 0, 0] and [2, 3, 0, 0]; the second entry elects plus, so that -1 is left out
    assert rules.ties(TAU, 0.5).tolist() == pytest.approx([3.0, 3.0, 0.0, 0.0])


def test_our_ties_is_the_kept_one() -> None:
    from peft.utils.merge_utils import ties

    tau = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    expected = ties(list(tau), weights=torch.ones(3), density=0.2)
    assert torch.allclose(rules.ties(tau, 0.2), expected, atol=1e-6)


def test_dare_drops_at_random_and_keeps_the_expectation() -> None:
    ones = torch.ones(2, 40_000)
    merged = rules.dare(ones, 0.9, seed=0)
    assert float(merged.mean()) == pytest.approx(1.0, abs=0.05)
    assert {round(v, 3) for v in merged.unique().tolist()} == {0.0, 5.0, 10.0}
    assert not torch.equal(merged, rules.dare(ones, 0.9, seed=1))


def test_breadcrumbs_drops_both_ends_of_every_tensor() -> None:
    tau = torch.cat([torch.arange(1.0, 11.0), 100 * torch.arange(1.0, 11.0)])[None]
    kept = rules.breadcrumbs(tau, [10, 10], bottom=0.5, top=0.1).nonzero().flatten().tolist()
    assert kept == [5, 6, 7, 8, 15, 16, 17, 18]  # by rank within the tensor, independent of its scale


def test_pcb_prefers_what_is_large_and_agreed_upon() -> None:
    tau = torch.tensor([[3.0, 3.0, 0.1, -2.0], [3.0, -3.0, 0.1, -2.0]])
    merged = rules.pcb(tau, density=0.75)
    assert float(merged[1]) == 0.0
    assert float(merged[0]) > 1.0
    assert float(merged[3]) < -1.0


def test_pcb_s_extremes_do_not_decide_the_weights_of_the_rest() -> None:
    torch.manual_seed(0)
    tau = torch.randn(2, 20_000)
    clean = rules.pcb(tau, density=0.1)
    tau[0, 7] = 1e3  # one entry that went wild
    spoiled = rules.pcb(tau, density=0.1)
    same = torch.arange(20_000) != 7
    assert torch.nn.functional.cosine_similarity(clean[same], spoiled[same], dim=0) > 0.99
    assert float(spoiled[7].abs()) < 10


def test_pcb_is_the_formula_of_its_released_code() -> None:
    tau = np.random.default_rng(0).normal(size=(3, 5000))
    ordered = np.sort(np.abs(tau), axis=1)
    size = np.clip(np.abs(tau), ordered[:, [0]], ordered[:, [int(5000 * (1 - 1e-4) - 1)]])
    within = ((size - size.min(1, keepdims=True)) / np.ptp(size, axis=1, keepdims=True)) ** 2
    score = np.exp(3 * within) * np.tanh(tau * tau.sum(0))
    cut = np.maximum(score, np.sort(score, axis=1)[:, [int(5000 * 0.9)]])
    weight = (cut - cut.min(1, keepdims=True)) / np.ptp(cut, axis=1, keepdims=True)
    expected = (weight * np.sign(tau) * size).sum(0) / np.maximum(weight.sum(0), 1e-12)
    merged = rules.pcb(torch.tensor(tau), density=0.1)
    assert np.allclose(merged.numpy(), expected, atol=1e-9)


# --- on models -----------------------------------------------------------------------------------
@functools.cache
def trained_folder(name: str, seed: int) -> Path:
    """The saved tensors of a row's cell with that seed."""
    import tempfile

    method = made(name)
    model = attached(method, llama())
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trained(model):
            parameter.add_(0.02 * torch.randn(parameter.shape))
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{seed}-"))
    method.save(model, folder)
    return folder


def ingredient(name: str, seed: int, of: Callable[[], nn.Module] = llama) -> Ingredient:
    return Ingredient(f"{name}.s{seed}", made(name), trained_folder(name, seed), of)


def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
    method = made(name)
    return dict(method.merge(method.load(llama(), trained_folder(name, seed))).state_dict())


@pytest.mark.parametrize("of", ["lora", "bitfit", "full"])
def test_a_uniform_soup_is_the_average_of_the_merged_models(of: str, tmp_path: Path) -> None:
    method = made("soup", of=of)
    model = attached(method, llama())
    parts = tuple(ingredient(of, seed) for seed in (0, 1, 2))
    if of == "bitfit":  # its models have tensors that the base has not
        with pytest.raises(Unsupported, match="bias"):
            method.finalize(model, Workshop(nll, parts, llama))
        return
    souped = method.finalize(model, Workshop(nll, parts, llama))
    each = [weights(of, seed) for seed in (0, 1, 2)]
    for name, tensor in souped.state_dict().items():
        assert torch.allclose(tensor, torch.stack([w[name] for w in each]).mean(dim=0), atol=1e-6)
    method.save(souped, tmp_path)
    assert gap(logits(made("soup", of=of).load(llama(), tmp_path), CAUSAL), logits(souped, CAUSAL)) < 1e-6


def test_a_greedy_soup_is_never_worse_than_its_best_ingredient() -> None:
    parts = tuple(ingredient("lora", seed) for seed in range(4))
    alone = [nll(i.method.load(llama(), i.folder)) for i in parts]
    method = made("soup-greedy", of="lora")
    model = method.finalize(attached(method, llama()), Workshop(nll, parts, llama))
    assert nll(model) <= min(alone) + 1e-6
    chosen = method.facts()["ingredients"]
    assert chosen[0] == alone.index(min(alone))


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("soup", "soup-greedy")])
def test_every_rule_combines_models(name: str) -> None:
    method = made(name, of="lora")
    before = llama().state_dict()
    parts = tuple(ingredient("lora", seed) for seed in (0, 1))
    model = method.finalize(attached(method, llama()), Workshop(nll, parts, llama))
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert len(moved) == 14  # the linear layers of two blocks, and nothing else
    assert method.expected_trainable(model) == 0
    if method.params["scale"] == "auto":
        assert method.facts()["scale"] in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.2)
        with pytest.raises(UserError, match="no validation split"):
            method.finalize(model, Workshop(None, parts, llama))


def test_what_does_not_merge_is_no_ingredient() -> None:
    method = made("soup", of="prefix")
    with pytest.raises(Unsupported, match=r"prefix\.s0 cannot be merged into its base exactly"):
        method.finalize(attached(method, llama()), Workshop(nll, (ingredient("prefix", 0),), llama))
    assert "merging into such weights" in (METHODS.get("soup").check(CAUSAL, "bnb-nf4", {}) or "")


# --- another base --------------------------------------------------------------------------------
def updated() -> nn.Module:
    """A second version of the tiny Llama."""
    model = llama()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def larger() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def test_portllm_puts_the_adapter_on_the_updated_base(tmp_path: Path) -> None:
    method: Any = made("portllm", of="lora")
    model = method.finalize(attached(method, updated()), Workshop(nll, (ingredient("lora", 0),), updated))
    expected = made("lora").load(updated(), trained_folder("lora", 0))
    assert gap(logits(model, CAUSAL), logits(expected, CAUSAL)) < 1e-6
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    method.save(model, tmp_path)
    assert gap(logits(method.load(updated(), tmp_path), CAUSAL), logits(model, CAUSAL)) < 1e-6
    with pytest.raises(Unsupported, match=r"prefix\.s0 is none"):
        method.finalize(updated(), Workshop(nll, (ingredient("prefix", 0),), updated))
    with pytest.raises(Unsupported, match=r"lora\.s0 does not fit this base"):
        method.finalize(larger(), Workshop(nll, (ingredient("lora", 0),), larger))


@pytest.mark.parametrize("of", ["full", "lora"])
def test_transfer_adds_the_difference_to_the_updated_base(of: str) -> None:
    method = made("ft-transfer", of=of, scale=0.5)
    model = method.finalize(attached(method, updated()), Workshop(nll, (ingredient(of, 0),), updated))
    first, second, tuned = llama().state_dict(), updated().state_dict(), weights(of, 0)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, second[name] + 0.5 * (tuned[name] - first[name]), atol=1e-6)
    with pytest.raises(Unsupported, match="of another shape"):
        method.finalize(larger(), Workshop(nll, (ingredient(of, 0),), larger))


# --- proxy-tuning --------------------------------------------------------------------------------
def test_proxy_tuning_adds_what_tuning_did_to_the_small_model(tmp_path: Path) -> None:
    method: Any = made("proxy-tuning", of="lora", strength=0.5)
    parts = (ingredient("lora", 0),)
    model: Any = method.finalize(attached(method, larger()), Workshop(nll, parts, larger))
    plain = larger()
    plain.load_state_dict(model.state_dict())
    expert = made("lora").load(llama(), trained_folder("lora", 0))
    expected = logits(plain, CAUSAL) + 0.5 * (logits(expert, CAUSAL) - logits(llama(), CAUSAL))
    assert gap(logits(model, CAUSAL), expected) < 1e-5
    # decoding sees the same sum: greedy tokens are those of the combined logits over the whole text
    prompt = batch(CAUSAL)["input_ids"][:1]
    produced = model.generate(input_ids=prompt, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    text = prompt
    with torch.no_grad():
        for _ in range(3):
            z = [m(input_ids=text).logits[:, -1] for m in (plain, expert, llama())]
            text = torch.cat([text, (z[0] + 0.5 * (z[1] - z[2])).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(produced, text)
    method.save(model, tmp_path)
    fresh = larger()
    fresh.load_state_dict(plain.state_dict())
    assert gap(logits(method.load(fresh, tmp_path), CAUSAL), expected) < 1e-5


def test_proxy_tuning_decodes_each_token_once() -> None:
    method: Any = made("proxy-tuning", of="lora")
    model: Any = method.finalize(attached(method, larger()), Workshop(nll, (ingredient("lora", 0),), larger))
    read: list[int] = []
    hook: Any = next(iter(model._forward_hooks.values()))
    for part in hook.parts:
        part.register_forward_pre_hook(
            lambda _, __, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
    prompt = batch(CAUSAL)["input_ids"][:2]
    model.generate(input_ids=prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert read == [prompt.shape[1]] * 2 + [1, 1] * 3
    assert len(hook._caches) == 0  # they end with the large model's


def test_proxy_tuning_follows_what_is_done_to_the_cache() -> None:
    method: Any = made("proxy-tuning", of="lora")
    model: Any = method.finalize(attached(method, larger()), Workshop(nll, (ingredient("lora", 0),), larger))
    tokens = batch(CAUSAL)["input_ids"][:2]
    whole = model(input_ids=tokens).logits
    cache = model(input_ids=tokens[:, :-2], use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([1, 0, 1]))
    again = model(input_ids=tokens[[1, 0, 1], -2:], past_key_values=cache, use_cache=True).logits
    assert gap(again, whole[[1, 0, 1], -2:]) < 1e-4


def test_a_cache_filled_elsewhere_is_refused() -> None:
    method: Any = made("proxy-tuning", of="lora")
    plain = larger()
    model: Any = method.finalize(attached(method, larger()), Workshop(nll, (ingredient("lora", 0),), larger))
    tokens = batch(CAUSAL)["input_ids"]
    cache = plain(input_ids=tokens, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="was not filled together"):
        model(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)


def test_a_small_model_of_another_vocabulary_cannot_steer() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    other = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    method = made("proxy-tuning", of="lora")
    with pytest.raises(Unsupported, match="knows 96 tokens and this model 50"):
        method.finalize(other, Workshop(nll, (ingredient("lora", 0),), larger))
