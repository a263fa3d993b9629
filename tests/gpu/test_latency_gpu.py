"""The inference probe against known durations on a real GPU. Run with: python -m pytest tests/gpu -s."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from harness.meters.catalog import build
from harness.meters.nvml import visible_uuids
from harness.meters.panel import Panel
from harness.spec import Probes
from runners.worker.inference_timing import Decoder, RequestShape
from runners.worker.latency import decode_energy, joules_per_token, measure
from tests.methods.tiny import llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]
DEVICE = torch.device("cuda", 0)


class Sleeping(nn.Module):
    """Keeps the device busy for known numbers of cycles at prefill and at each step."""

    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, prefill: int, step: int) -> None:
        super().__init__()
        self.cycles = {True: prefill, False: step}

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        torch.cuda._sleep(self.cycles[past_key_values is None])
        if past_key_values is None:
            past_key_values = SimpleNamespace(length=0)
            past_key_values.get_seq_length = lambda: past_key_values.length
        past_key_values.length += input_ids.shape[1]
        logits = nn.functional.one_hot(torch.ones_like(input_ids), 3).float()
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)


def sleep_ms(cycles: int) -> float:
    """Duration of the same sleep alone."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    torch.cuda._sleep(cycles)
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last))


def test_ttft_and_tpot_are_the_known_sleeps() -> None:
    prefill, step = 200_000_000, 50_000_000
    sleep_ms(prefill)  # clocks up
    ids = torch.ones(2, 8, dtype=torch.long, device=DEVICE)
    decoder = Decoder(Sleeping(prefill, step), DEVICE)
    decoder.request(ids, 4)
    timing, _ = decoder.request(ids, 4)
    known_prefill_ms, known_step_ms = sleep_ms(prefill), sleep_ms(step)
    print(
        f"TTFT {timing.ttft_ms:.2f} of {known_prefill_ms:.2f} ms, TPOT {timing.tpot_ms:.2f} of {known_step_ms:.2f} ms"
    )
    assert timing.ttft_ms == pytest.approx(known_prefill_ms, rel=0.05)
    assert timing.tpot_ms == pytest.approx(known_step_ms, rel=0.05)
    assert timing.e2e_ms == pytest.approx(timing.ttft_ms + sum(timing.gaps_ms), rel=0.05)


def test_the_loop_generates_what_generate_does() -> None:
    model = llama().to(DEVICE)
    ids = torch.arange(1, 15, device=DEVICE).reshape(2, 7)
    with torch.inference_mode():
        _, tokens = Decoder(model, DEVICE).request(ids, 6)
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[:, -6:]
    assert tokens.tolist() == expected.tolist()


def test_batch_that_does_not_fit_is_recorded_and_frees_memory() -> None:
    ids = torch.randint(1, 96, (4, 8), device=DEVICE)
    ctx: Any = SimpleNamespace(
        model=llama().to(DEVICE),
        device=DEVICE,
        kind="causal-lm",
        probes=Probes(latency_repeats=20, prompt_tokens=(1024,)),
        probe_batch={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        tokenizer=SimpleNamespace(model_max_length=2048),
        job=SimpleNamespace(device="cuda", metered=()),
    )
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory, 0)
    try:
        entries = [measure(ctx, RequestShape(batch, 1024, 2), None) for batch in (1, 4096, 1)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert [e["status"] for e in entries] == ["ok", "oom", "ok"]
    assert torch.cuda.memory_allocated() - before < 2**24


@pytest.mark.slow
def test_joules_per_token_match_mean_power_of_the_window() -> None:
    panel = Panel(build("cuda:0", uuids=visible_uuids()[:1], names=["energy"]))
    if not panel.meters:
        pytest.skip(f"no energy meter: {panel.absent()[0].details}")
    decoder, ids = Decoder(llama().to(DEVICE), DEVICE), torch.ones(4, 64, dtype=torch.long, device=DEVICE)
    with torch.inference_mode():
        found = {
            "prefill": joules_per_token(panel, lambda: decoder.prefill(ids), ids.numel(), "cuda:0"),
            "decode": decode_energy(panel, decoder, ids, 16, "cuda:0"),
        }
    for name, entry in found.items():
        if entry.get("why_missing") == "shared":
            pytest.skip("other processes use this device")
        print(name, entry)
        watts = entry["joules"] / entry["window_s"]
        assert 5 < watts < 2000
        assert entry["meets_protocol"]
        assert entry["value"] == pytest.approx(entry["joules"] / entry["tokens"])
    assert found["decode"]["value"] > found["prefill"]["value"]  # a step handles one token where a prefill has 64
