"""Back ends whose products round activations: the declaration against what a little noise does."""

from __future__ import annotations

import pytest
import torch

from tests.quantizers.conftest import Loader, batch

NOISE = 1e-5
DRAWS = 12


@pytest.mark.parametrize("name", ["none", "bnb-int8", "bnb-nf4", "rtn", "torchao-int8", "torchao-int8-dynamic"])
def test_noise_jumps_only_where_activations_are_rounded(load: Loader, name: str) -> None:
    from harness.quantizers.catalog import QUANTIZERS

    model, given = load(name), batch("causal-lm")
    embedded = model.get_input_embeddings()(given["input_ids"])  # type: ignore[operator]
    worst = 0.0
    with torch.no_grad():
        before = model(inputs_embeds=embedded, attention_mask=given["attention_mask"]).logits.float()
        for seed in range(DRAWS):
            noise = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(seed))
            moved = embedded * (1 + NOISE * noise)
            after = model(inputs_embeds=moved, attention_mask=given["attention_mask"]).logits.float()
            worst = max(worst, ((after - before).abs().max() / before.abs().max()).item())
    assert (worst > 100 * NOISE) == QUANTIZERS.get(name).declaration.rounds_activations
