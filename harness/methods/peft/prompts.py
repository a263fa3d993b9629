"""Prompt methods of peft: trained virtual tokens or cache entries, the model itself untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.peft import param_counts as counts
from harness.methods.peft.param_counts import Count
from harness.methods.peft.row import PeftRow

SOURCE = (
    "20 virtual tokens, as in peft's examples; learning rate 50 × full's, the top of the usual range for soft prompts"
)
CAUSAL_LM = frozenset({"causal-lm"})


def _prompt(
    name: str,
    config: str,
    count: Count,
    summary: str,
    paper: str,
    *,
    defaults: Mapping[str, object] | None = None,
    variant: str = "",
    lr: float = 50,
    refuses: Mapping[str, str] | None = None,
    **declared: Any,
) -> PeftRow:
    """A row of 20 virtual tokens, unless ``defaults`` says otherwise. Nothing of the base is touched: all bases do."""
    declaration = Declaration(
        name=name,
        summary=summary,
        family="prompt",
        trainable=counts.formula(count),
        paper=paper,
        lr_factor=lr,
        bases=bases.ALL - (refuses or {}).keys(),
        refuses={**bases.because(bases.NO_GRADIENT, bases.DYNAMIC), **(refuses or {})},
        **{
            "defaults": {"num_virtual_tokens": 20} if defaults is None else defaults,
            "defaults_source": SOURCE,
            "identity_at_start": False,
            **declared,
        },
    )
    return PeftRow(declaration, config, count, variant=variant)


ROWS = (
    _prompt(
        "prompt",
        "PromptTuningConfig",
        counts.prompt,
        "Prompt tuning: trained vectors precede the embedded input.",
        "2104.08691",
        variant="Prompt",
    ),
    _prompt(
        "prefix",
        "PrefixTuningConfig",
        counts.prefix,
        "Prefix tuning: trained keys and values precede the input's in every attention layer.",
        "2101.00190",
        defaults={"num_virtual_tokens": 20, "prefix_projection": False},
        trains_cache=True,
    ),
    _prompt(
        "p-tuning",
        "PromptEncoderConfig",
        counts.prompt_encoder,
        "P-tuning: virtual tokens produced by a small trained encoder.",
        "2103.10385",
        defaults={"num_virtual_tokens": 20, "encoder_reparameterization_type": "MLP", "encoder_hidden_size": 128},
        variant="Prompt",
        lr=20,
    ),
    _prompt(
        "multitask-prompt",
        "MultitaskPromptTuningConfig",
        counts.multitask_prompt,
        "Multitask prompt tuning: a shared prompt times a low-rank factor per task; here with one task.",
        "2303.02861",
        defaults={"num_virtual_tokens": 20, "num_ranks": 1, "num_tasks": 1},
        variant="MultitaskPrompt",
    ),
    _prompt(
        "cpt",
        "CPTConfig",
        counts.context_prompt,
        "CPT: worked examples precede every input; their embeddings may move inside a small ball, and their answers "
        "count in the loss.",
        "2410.17222",
        defaults={"context": None, "examples": 4, "opt_projection_epsilon": 0.1},
        variant="ContextPrompt",
        kinds=CAUSAL_LM,
        refuses_kind={"sequence-classification": "peft has it for language models only: its loss is one over tokens"},
    ),
    _prompt(
        "cartridge",
        "CartridgeConfig",
        counts.cartridge,
        "Cartridge: a key-value cache is trained in place of a long context.",
        "2506.06266",
        defaults={"num_virtual_tokens": 20, "num_frozen_tokens": 1},
        trains_cache=True,
    ),
    _prompt(
        "llama-adapter",
        "AdaptionPromptConfig",
        counts.adaption_prompt,
        "LLaMA-Adapter: prompts in the upper blocks' attention, behind a gate that starts closed.",
        "2303.16199",
        defaults={"adapter_len": 10, "adapter_layers": "all"},
        variant="AdaptionPrompt",
        kinds=CAUSAL_LM,
        refuses_kind={
            "sequence-classification": "peft rewrites the attention of Llama, Mistral and GPT-2 decoders only"
        },
        identity_at_start=True,
        refuses=bases.because(
            "peft reads the weight parameter of the layers, which this back end does not have", bases.PACKED, bases.HQQ
        ),
    ),
)
