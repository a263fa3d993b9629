"""Every loss against TRL's on the same numbers, and what its equation says by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from harness.objectives import losses

PAIRS, TOKENS, WORDS = 6, 9, 17


@pytest.fixture
def logps() -> dict[str, torch.Tensor]:
    """Summed log-probabilities of pairs under policy and reference, and the answers' lengths."""
    draw = torch.Generator().manual_seed(3)

    def one() -> torch.Tensor:
        return -8 * torch.rand(PAIRS, generator=draw) - 0.1

    lengths = torch.randint(1, 9, (2, PAIRS), generator=draw)
    return {
        "chosen": one(),
        "rejected": one(),
        "ref_chosen": one(),
        "ref_rejected": one(),
        "long": lengths[0],
        "short": lengths[1],
    }


def batch_of_logits() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(4, TOKENS, WORDS, generator=draw)
    labels = torch.randint(0, WORDS, (4, TOKENS), generator=draw)
    labels[:, :3] = losses.IGNORED
    labels[1, 6:] = losses.IGNORED
    return logits, labels


def test_sequence_log_probs_are_trl_s() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    logits, labels = batch_of_logits()
    ours, lengths = losses.sequence_log_probs(logits, labels)
    theirs = orpo.ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=False)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours / lengths, orpo.ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True))


def test_virtual_tokens_in_front_are_dropped() -> None:
    logits, labels = batch_of_logits()
    virtual = torch.cat([torch.full((4, 5, WORDS), 9.0), logits], dim=1)
    torch.testing.assert_close(
        losses.sequence_log_probs(virtual, labels)[0], losses.sequence_log_probs(logits, labels)[0]
    )


def test_labelled_logits_give_transformers_loss() -> None:
    logits, labels = batch_of_logits()
    predicted, wanted = losses.labelled_logits(logits, labels)
    plain = functional.cross_entropy(logits[:, :-1].reshape(-1, WORDS), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(functional.cross_entropy(predicted, wanted), plain)
    torch.testing.assert_close(losses.weighted_cross_entropy(logits, labels, torch.ones(len(wanted))), plain)


def test_a_weight_of_zero_takes_a_token_out() -> None:
    logits, labels = batch_of_logits()
    predicted, wanted = losses.labelled_logits(logits, labels)
    nll = functional.cross_entropy(predicted, wanted, reduction="none")
    weights = torch.ones(len(wanted))
    weights[2] = 0
    expected = (nll.sum() - nll[2]) / len(wanted)
    torch.testing.assert_close(losses.weighted_cross_entropy(logits, labels, weights), expected)


def test_orpo_s_odds_ratio_is_trl_s(logps: dict[str, torch.Tensor]) -> None:
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    chosen, rejected = logps["chosen"] / logps["long"], logps["rejected"] / logps["short"]
    stub: Any = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    theirs = orpo.ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)[0]
    torch.testing.assert_close(0.1 * losses.orpo_ratio(chosen, rejected), -theirs)


def test_orpo_near_certainty_has_a_finite_gradient() -> None:
    chosen = torch.tensor([-1e-6, -30.0], requires_grad=True)
    losses.orpo_ratio(chosen, torch.tensor([-1e-6, -1e-6])).sum().backward()
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_simpo_is_trl_s(logps: dict[str, torch.Tensor]) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    chosen, rejected = logps["chosen"] / logps["long"], logps["rejected"] / logps["short"]
    stub: Any = SimpleNamespace(
        beta=2.0,
        alpha=0.0,
        simpo_gamma=1.0,
        label_smoothing=0.0,
        loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs = cpo.CPOTrainer.cpo_loss(stub, chosen, rejected)[0]
    torch.testing.assert_close(losses.simpo(chosen, rejected, beta=2.0, gamma=1.0), theirs)


@pytest.mark.parametrize(("direction", "beta"), [("forward", 0), ("reverse", 1)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_on_all_words_is_trl_s(direction: Any, beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, labels = batch_of_logits()
    teacher = 2 * torch.randn(student.shape, generator=torch.Generator().manual_seed(8))
    wanted = labels[:, 1:]
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student[:, :-1], teacher[:, :-1], labels=wanted, beta=beta, temperature=temperature
    )
    indices, log_probs = losses.top_log_probs(
        losses.labelled_logits(teacher, labels)[0], WORDS, temperature=temperature
    )
    ours = losses.divergence(
        losses.labelled_logits(student, labels)[0], indices, log_probs, temperature=temperature, direction=direction
    )
    torch.testing.assert_close(ours.mean(), theirs)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_fewer_words_give_a_lower_bound_that_grows(direction: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = 2 * torch.randn(2, 50, WORDS, generator=draw)
    found = []
    for k in (1, 4, 10, WORDS):
        indices, log_probs = losses.top_log_probs(teacher, k)
        found.append(losses.divergence(student, indices, log_probs, direction=direction))
    for fewer, more in pairwise(found):
        assert (more - fewer > -1e-5).all()
    assert (found[0] >= -1e-6).all()


def test_dpo_by_hand(logps: dict[str, torch.Tensor]) -> None:
    found = losses.dpo(
        *(logps[n] for n in ("chosen", "rejected", "ref_chosen", "ref_rejected")), beta=0.3, label_smoothing=0.1
    )
    for i in range(PAIRS):
        margin = float(logps["chosen"][i] - logps["ref_chosen"][i] - logps["rejected"][i] + logps["ref_rejected"][i])
        p = 1 / (1 + math.exp(-0.3 * margin))
        assert float(found[i]) == pytest.approx(-0.9 * math.log(p) - 0.1 * math.log(1 - p), rel=1e-5)


def test_dpo_lowers_rejected_and_raises_chosen(logps: dict[str, torch.Tensor]) -> None:
    chosen, rejected = logps["chosen"].requires_grad_(), logps["rejected"].requires_grad_()
    losses.dpo(chosen, rejected, logps["ref_chosen"], logps["ref_rejected"], beta=0.1).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


def test_kto_s_reference_point_has_no_gradient(logps: dict[str, torch.Tensor]) -> None:
    other = logps["rejected"].requires_grad_()
    own = logps["chosen"].requires_grad_()
    losses.kto(own, logps["ref_chosen"], torch.ones(PAIRS), other, logps["ref_rejected"], beta=0.1).sum().backward()
    assert other.grad is None
    assert own.grad is not None


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
def test_an_objective_reads_chosen_first_and_rejected_second(name: str) -> None:
    """Arguments that the class hands to its loss, against the halves of the batch taken by hand."""
    from harness.objectives.catalog import OBJECTIVES

    logits, labels = batch_of_logits()
    objective = OBJECTIVES.get(name)(OBJECTIVES.get(name).resolve({}))
    extra = {"reference_chosen": torch.tensor([-3.0, -4.0]), "reference_rejected": torch.tensor([-5.0, -2.0])}
    found = objective.loss(SimpleNamespace(logits=logits), {"labels": labels}, extra, torch.tensor(0.0))
    (chosen, long), (rejected, short) = (
        losses.sequence_log_probs(logits[i], labels[i]) for i in (slice(2), slice(2, 4))
    )
    a, b = chosen / long, rejected / short
    expected = {
        "dpo": lambda: losses.dpo(chosen, rejected, *extra.values(), beta=0.1).mean(),
        "ipo": lambda: losses.ipo(chosen, rejected, *extra.values(), long, short, beta=0.1).mean(),
        "orpo": lambda: -chosen.sum() / long.sum() + 0.1 * losses.orpo_ratio(a, b).mean(),
        "simpo": lambda: losses.simpo(a, b, beta=2.0, gamma=1.0).mean(),
    }
    torch.testing.assert_close(found, expected[name]())


trl = pytest.importorskip("trl")

CONVERSATIONS = {
    "prompt": ["Cabcdef=", "Caaaaaa=", "Cfedcba=", "Cbadcfe="],
    "chosen": ["abcdef", "aaaaaa", "fedcba", "badcfe"],
    "rejected": ["abcdee", "aa", "abc", "jjjjjjj"],
}


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    """Policy, reference and tokenizer: two different tiny Llamas with the nano model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.models.nano import build_tokenizer
    from harness.models.sources import recipe

    tokenizer = build_tokenizer(recipe("nano").data["alphabet"])
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        made.append(LlamaForCausalLM(config).eval())
    return made[0], made[1], tokenizer


def options(config: Any, folder: Path, **more: Any) -> Any:
    return config(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        beta=0.3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        remove_unused_columns=False,
        gradient_checkpointing=False,
        **more,
    )


def batch_of(trainer: Any) -> Any:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def log_probs(model: Any, ids: torch.Tensor, mask: torch.Tensor, completion: torch.Tensor) -> Any:
    """Our log-probabilities of TRL's own batch."""
    labels = ids.masked_fill(completion == 0, losses.IGNORED)
    with torch.no_grad():
        return losses.sequence_log_probs(model(input_ids=ids, attention_mask=mask).logits, labels)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo_and_ipo_are_trl_s(models: tuple[Any, Any, Any], tmp_path: Path, kind: str) -> None:
    from datasets import Dataset

    policy, reference, tokenizer = models
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=options(trl.DPOConfig, tmp_path, loss_type=[kind]),
        train_dataset=Dataset.from_dict(CONVERSATIONS),
        processing_class=tokenizer,
    )
    batch = batch_of(trainer)
    trainer.model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
    ids, mask, completion = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    (ours, lengths), (reference_logp, _) = (log_probs(m, ids, mask, completion) for m in (policy, reference))
    (chosen, rejected), (ref_chosen, ref_rejected) = ours.chunk(2), reference_logp.chunk(2)
    if kind == "sigmoid":
        found = losses.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    else:
        found = losses.ipo(chosen, rejected, ref_chosen, ref_rejected, *lengths.chunk(2), beta=0.3)
    assert float(found.mean()) == pytest.approx(theirs, rel=1e-4)
    assert theirs != pytest.approx(0.6931, abs=1e-2), "policy and reference must differ, or any beta would do"


def test_kto_is_trl_s(models: tuple[Any, Any, Any], tmp_path: Path) -> None:
    from datasets import Dataset

    policy, reference, tokenizer = models
    rows = {
        "prompt": CONVERSATIONS["prompt"],
        "completion": [*CONVERSATIONS["chosen"][:2], *CONVERSATIONS["rejected"][2:]],
        "label": [True, True, False, False],
    }
    trainer = trl.KTOTrainer(
        model=policy,
        ref_model=reference,
        args=options(trl.KTOConfig, tmp_path, desirable_weight=1.0, undesirable_weight=1.5),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    batch = batch_of(trainer)
    trainer.model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
    found = []
    for model in (policy, reference):
        own = log_probs(model, batch["input_ids"], batch["attention_mask"], batch["completion_mask"])[0]
        other = log_probs(model, batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"])[0]
        found.append((own, other))
    (own, other), (ref_own, ref_other) = found
    good = torch.as_tensor(batch["label"])
    ours = losses.kto(own, ref_own, good, other, ref_other, beta=0.3, undesirable_weight=1.5)
    assert float(ours.mean()) == pytest.approx(theirs, rel=1e-4)
