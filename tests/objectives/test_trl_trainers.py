"""DPO, IPO and KTO against TRL's trainers: one model, one reference, one batch, one number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.objectives import losses

trl = pytest.importorskip("trl")

PAIRS = {
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
        train_dataset=Dataset.from_dict(PAIRS),
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
        "prompt": PAIRS["prompt"],
        "completion": [*PAIRS["chosen"][:2], *PAIRS["rejected"][2:]],
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
