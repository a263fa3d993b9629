"""LoRA and its variants: other scales, other starting points, other optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.peft.param_counts import (
    Count,
    adaptive,
    block_diagonal,
    formula,
    frozen_down,
    frozen_up,
    low_rank,
    low_rank_diagonal,
    pooled,
    sampled,
    unknown,
)
from harness.methods.peft.row import PeftRow

RENAMED = {"alpha": "lora_alpha", "dropout": "lora_dropout", "init": "init_lora_weights"}
SHAPE: dict[str, object] = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}
SOURCE = (
    "rank 8 and alpha 16 on every linear layer; learning rate ten times that of full fine-tuning, the optimum's ratio "
    "in 'LoRA Without Regret' (9.8 over 14 models)"
)
TAKEN_APART = {
    **bases.FLOAT_ONLY,
    **bases.because(
        "it moves a dense part of the base's weight into the adapter; a sparse base would not stay sparse", "sparse"
    ),
}
PLAIN = bases.because(bases.PLAIN_LORA, bases.BNB, bases.HQQ)
NO_HQQ = bases.because(bases.NO_HQQ_LAYER, bases.HQQ)
CAUSAL_LM = frozenset({"causal-lm"})


def _lora(
    name: str,
    summary: str,
    paper: str,
    *,
    defaults: Mapping[str, object] | None = None,
    fixed: Mapping[str, object] | None = None,
    count: Count = low_rank,
    variant: str = "",
    config: str = "LoraConfig",
    nested: tuple[str, str] | None = None,
    divisors: Mapping[str, tuple[str, int]] | None = None,
    needs: tuple[str, str] | None = None,
    refuses: Mapping[str, str] | None = None,
    further: frozenset[str] = frozenset(),
    **declared: Any,
) -> PeftRow:
    """A row over ``LoraConfig``; it differs from plain LoRA in the given options, and trains on the bases in
    ``further`` too.
    """
    fixed = fixed or {}
    refused = {**bases.because(bases.NO_GRADIENT, bases.DYNAMIC), **(refuses or {})}
    declaration = Declaration(
        name=name,
        summary=summary,
        family="adapter",
        trainable=formula(count),
        paper=paper,
        **{
            "bases": bases.ALL - refused.keys() | further,
            "refuses": refused,
            "merge_refuses": bases.MERGES_QUANTIZED,
            "mergeable": "exactly",
            "defaults": {name: value for name, value in {**SHAPE, **(defaults or {})}.items() if name not in fixed},
            "defaults_source": SOURCE,
            "lr_factor": 10.0,
            "parallel": bases.IN_RANKS.get(name, frozenset()),
            **declared,
        },
    )
    renamed = {ours: theirs for ours, theirs in RENAMED.items() if theirs not in fixed}
    return PeftRow(declaration, config, count, fixed, renamed, nested, divisors or {}, needs=needs, variant=variant)


ROWS = (
    _lora(
        "lora",
        "Low-rank adaptation: each weight gets an update (alpha/r)·B·A of rank r; the base stays frozen.",
        "2106.09685v2",
        defaults={"use_rslora": False, "use_dora": False, "init": True},
        further=bases.CHECKPOINTS,
    ),
    _lora(
        "rslora",
        "Rank-stabilized LoRA: the update is scaled by alpha/√r, so that high ranks keep learning.",
        "2312.03732",
        fixed={"use_rslora": True},
        further=bases.CHECKPOINTS,
    ),
    _lora(
        "dora",
        "Weight-decomposed LoRA: LoRA moves the direction of each weight, a trained vector its magnitude.",
        "2402.09353",
        fixed={"use_dora": True},
        refuses=bases.because("the int8 layer drops its weight's state that DoRA's norm needs", bases.BNB_INT8),
    ),
    _lora(
        "alora",
        "Activated LoRA: the adapter acts only from an invocation text on; the base's skills and cache stay intact.",
        "2504.12397",
        defaults={"invocation": None},
        variant="ActivatedLora",
        kinds=CAUSAL_LM,
        refuses_kind={
            "sequence-classification": "a text inside a prompt switches it on; peft has it for language models"
        },
        mergeable="no",
        merge_refuses={},
        refuses={**bases.because(bases.VIEW_IN_PLACE, bases.QUANTO_8), **NO_HQQ},
    ),
    _lora(
        "pissa",
        "PiSSA: the factors start as the principal singular part of the weight, and the base keeps the rest.",
        "2404.02948",
        fixed={"init_lora_weights": "pissa"},
        variant="Reparameterized",
        refuses=TAKEN_APART,
    ),
    _lora(
        "olora",
        "OLoRA: the factors start as the QR decomposition of the weight, and the base keeps the rest.",
        "2406.01775",
        fixed={"init_lora_weights": "olora"},
        variant="Reparameterized",
        refuses=TAKEN_APART,
    ),
    _lora(
        "orthogonal-lora",
        "LoRA whose factors start orthogonal to each other; the base is left untouched.",
        "",
        fixed={"init_lora_weights": "orthogonal"},
        refuses={
            **bases.because(bases.PACKED_BYTES, bases.BNB_4BIT),
            **bases.because(bases.RAW_CODES, bases.BNB_INT8),
            **NO_HQQ,
        },
    ),
    _lora(
        "mica",
        "MiCA: B is frozen at the weight's minor singular directions, and only A is trained.",
        "2604.01694",
        fixed={"init_lora_weights": "mica"},
        count=frozen_up,
        refuses={
            **bases.because(bases.NO_FLOAT_WEIGHT, bases.BNB, bases.HQQ),
            **bases.because(bases.MISSING_OPERATION, bases.TORCHAO),
        },
    ),
    _lora(
        "eva",
        "EVA: A starts as the principal directions of each layer's input, and the ranks go where they explain most.",
        "2410.07170",
        defaults={"rho": 2.0},
        fixed={"init_lora_weights": "eva"},
        nested=("eva_config", "EvaConfig"),
        count=unknown,
        variant="Eva",
    ),
    _lora(
        "corda",
        "CorDA: the factors start as the part of the weight that matters on training inputs; the base keeps the rest.",
        "2406.05223",
        defaults={"corda_method": "ipm"},
        fixed={"init_lora_weights": "corda"},
        nested=("corda_config", "CordaConfig"),
        variant="Corda",
        needs=("attr", "attrs"),
        refuses=TAKEN_APART,
        lr_factor=1.0,
        defaults_source="rank 8 and alpha 16 on every linear layer; the rate is a tenth of LoRA's, at which a small "
        "encoder learns TREC (0.63); at LoRA's it gives one answer",
    ),
    _lora(
        "lora-ga",
        "LoRA-GA: the factors start as singular vectors of the first gradient, to follow full fine-tuning's step.",
        "2407.05000",
        defaults={"direction": "ArB2r", "scale": "stable", "stable_gamma": 16},
        fixed={"init_lora_weights": "lora_ga"},
        nested=("lora_ga_config", "LoraGAConfig"),
        variant="LoraGa",
        refuses=TAKEN_APART,
    ),
    _lora(
        "loftq",
        "LoftQ: the base is rounded to low bits, and the factors start as the best correction of that error.",
        "2310.08659",
        defaults={"loftq_bits": 4, "loftq_iter": 1},
        fixed={"init_lora_weights": "loftq"},
        nested=("loftq_config", "LoftQConfig"),
        variant="LoftQ",
        bases=frozenset({"fp"}),
        refuses=bases.because(
            "loftq quantizes the weights itself and needs them in floating point", bases.QUANTIZED, "sparse"
        ),
        identity_at_start=False,
    ),
    _lora(
        "qalora",
        "QA-LoRA: inputs are pooled by the base's quantization groups, so the update folds into their zero points.",
        "2309.14717",
        defaults={"qalora_group_size": 16},
        fixed={"use_qalora": True},
        count=pooled,
        bases=frozenset({"gptq"}),
        refuses=bases.because("peft ignores use_qalora on all but GPTQ bases and would train plain LoRA", bases.ALL),
    ),
    _lora(
        "kasa",
        "KaSA: the base loses its smallest singular values, and trained singular values are placed between LoRA's "
        "factors.",
        "2412.06071",
        defaults={"beta": 1e-4, "gamma": 1e-3},
        nested=("kasa_config", "KasaConfig"),
        count=low_rank_diagonal,
        variant="Kasa",
        identity_at_start=False,
        refuses={
            **PLAIN,
            **bases.because(bases.MISSING_OPERATION, bases.TORCHAO),
            **bases.because("peft truncates a copy of a quanto weight, and the base stays whole", bases.QUANTO),
            **bases.because("it truncates the base's weight, which a sparse weight does not survive", "sparse"),
        },
    ),
    _lora(
        "velora",
        "VeLoRA: LoRA that keeps compressed activations for the backward pass and so needs less memory.",
        "2405.17991",
        defaults={"num_groups": "auto", "scale": 1.0, "init_type": "batch_average"},
        nested=("velora_config", "VeloraConfig"),
        divisors={"num_groups": ("inputs", 64)},
        refuses=bases.because("peft has no VeLoRA for this back end's layers", bases.BNB, bases.HQQ),
    ),
    _lora(
        "monteclora",
        "MonteCLoRA: the factors are drawn around a trained mean while training, for better calibrated answers.",
        "2411.04358",
        nested=("monteclora_config", "MontecloraConfig"),
        count=sampled,
        variant="MonteClora",
        refuses=PLAIN,
    ),
    _lora(
        "bd-lora",
        "BD-LoRA: block-diagonal factors, which need no communication when the model is served in shards.",
        "",
        defaults={
            "nblocks": 2,
            "target_modules_bd_b": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "query", "key", "value"],
            "target_modules_bd_a": ["o_proj", "down_proj"],
            "match_strict": False,
        },
        nested=("use_bdlora", "BdLoraConfig"),
        count=block_diagonal,
        refuses={**PLAIN, **bases.because(bases.VIEW_IN_PLACE, bases.QUANTO_8)},
        merge_refuses={
            **bases.MERGES_QUANTIZED,
            **bases.because("peft multiplies the block-diagonal factors as if they were dense", bases.TORCHAO),
        },
    ),
    _lora(
        "lora-plus",
        "LoRA+: plain LoRA in which B learns faster than A.",
        "2402.12354",
        defaults={"lr_ratio": 16.0},
        further=bases.CHECKPOINTS,
        variant="LoraPlus",
        lr_factor=0.5,
        defaults_source="ratio 16, as the paper and peft advise; the rate of A, for which they advise half of LoRA's, "
        "is a twentieth of it: at half a small encoder gives one answer on TREC, at a twentieth it learns (0.59)",
    ),
    _lora(
        "lora-fa-corrected",
        "LoRA-FA as peft has it: A is frozen, B's gradient is corrected by pinv(A·Aᵀ)/s²; not the paper's plain form.",
        "2308.03303",
        count=frozen_down,
        further=bases.CHECKPOINTS,
        variant="LoraFa",
    ),
    _lora(
        "riemannian-lora",
        "LoRA under a Riemannian preconditioner: each factor's gradient is scaled by the other's inverse Gram matrix.",
        "2402.02347",
        defaults={"damping": 0.01},
        further=bases.CHECKPOINTS,
        variant="Riemannian",
    ),
    _lora(
        "adalora",
        "AdaLoRA: the update has singular values, and the least sensitive of them are pruned while training.",
        "2303.10512",
        config="AdaLoraConfig",
        defaults={
            "init_r": 12,
            "target_r": 8,
            "warmup_share": 0.1,
            "final_share": 0.5,
            "deltaT": 1,
            "orth_reg_weight": 0.5,
        },
        fixed={"r": 8},  # has no effect with init_r and target_r
        count=adaptive,
        variant="AdaLora",
        defaults_source="ranks 12 → 8 as peft's; warm-up and final phase as shares as in the paper's GLUE schedules",
        refuses={**bases.because(bases.VIEW_IN_PLACE, bases.QUANTO_8), **NO_HQQ},
        merge_refuses=bases.merges_but(bases.PACKED),
    ),
)
