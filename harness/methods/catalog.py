"""All fine-tuning methods by name. Listing them imports neither torch nor peft."""

from __future__ import annotations

import json

from harness.methods import bases
from harness.methods.base import Declaration, Method
from harness.methods.merging.merge_adapters import TABLE as COMBINED
from harness.methods.peft.table import NOT_OFFERED, table
from harness.registry import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "none": "harness.methods.baselines:NoTraining",
        "few-shot": "harness.methods.baselines:FewShot",
        "head": "harness.methods.baselines:Head",
        "full": "harness.methods.baselines:Full",
        "neftune": "harness.methods.noise:NefTune",
        "lora-neftune": "harness.methods.noise:LoraNefTune",
        "reinit-top": "harness.methods.baselines:ReinitTop",
        "llrd": "harness.methods.baselines:LayerwiseDecay",
        "last-k": "harness.methods.baselines:LastBlocks",
        "freeze-low": "harness.methods.baselines:FreezeLow",
        "embed-head": "harness.methods.baselines:EmbeddingsAndHead",
        "bitfit": "harness.methods.baselines:BitFit",
        "hft": "harness.methods.selective.hft:HalfFineTuning",
        "lisa": "harness.methods.selective.lisa:Lisa",
        "owlore": "harness.methods.selective.owlore:OwLore",
        "greentrainer": "harness.methods.selective.greentrainer:GreenTrainer",
        "lofit": "harness.methods.selective.lofit:LoFiT",
        "spiel-ag": "harness.methods.selective.spiel:SpIELAG",
        "spiel-ma": "harness.methods.selective.spiel:SpIELMA",
        "lift": "harness.methods.selective.lift:LIFT",
        "lt-sft": "harness.methods.selective.ltsft:LotteryTicket",
        "grafting": "harness.methods.selective.grafting:Grafting",
        "dsee": "harness.methods.selective.dsee:DSEE",
        "s2ft": "harness.methods.selective.s2ft:S2FT",
        "galore": "harness.methods.optimizers.galore:GaLore",
        "galore-8bit": "harness.methods.optimizers.galore:GaLore8bit",
        "q-galore": "harness.methods.optimizers.galore:QGaLore",
        "natural-galore": "harness.methods.optimizers.galore:NaturalGaLore",
        "fira": "harness.methods.optimizers.galore:Fira",
        "apollo": "harness.methods.optimizers.apollo:Apollo",
        "apollo-mini": "harness.methods.optimizers.apollo:ApolloMini",
        "gradnormlorp": "harness.methods.optimizers.lora_optimizers:GradNormLoRP",
        "lora-refactor": "harness.methods.optimizers.lora_optimizers:RefactorizedLora",
        "lomo": "harness.methods.optimizers.lomo:Lomo",
        "adalomo": "harness.methods.optimizers.lomo:AdaLomo",
        "adamw-8bit": "harness.methods.optimizers.eight_bit:AdamW8bit",
        "adamw-paged": "harness.methods.optimizers.eight_bit:PagedAdamW",
        "mezo": "harness.methods.zeroth_order.mezo:Mezo",
        "sparse-mezo": "harness.methods.zeroth_order.family:SparseMezo",
        "zo-sparse": "harness.methods.zeroth_order.family:ZoSparse",
        "zo-sign": "harness.methods.zeroth_order.family:ZoSign",
        "zo-momentum": "harness.methods.zeroth_order.family:ZoMomentum",
        "zo-adam": "harness.methods.zeroth_order.family:ZoAdam",
        "zo-conservative": "harness.methods.zeroth_order.family:ZoConservative",
        "zo-forward-grad": "harness.methods.zeroth_order.family:ZoForwardGradient",
        "zo-blockwise": "harness.methods.zeroth_order.family:ZoBlockwise",
        "zo-hybrid": "harness.methods.zeroth_order.family:ZoHybrid",
        "compeft": "harness.methods.merging.compeft:ComPeft",
        **{name: f"harness.methods.merging.merge_adapters:{name}" for name in COMBINED},
        "portllm": "harness.methods.merging.transfer:PortLlm",
        "proxy-tuning": "harness.methods.merging.proxy:ProxyTuning",
        "ft-transfer": "harness.methods.merging.transfer:FineTuningTransfer",
        "series-adapter": "harness.methods.adapters.bottleneck:SeriesAdapter",
        "parallel-adapter": "harness.methods.adapters.bottleneck:ParallelAdapter",
        "mam": "harness.methods.adapters.mam:MAM",
        "flexora": "harness.methods.gated.flexora:Flexora",
        "diffora": "harness.methods.gated.diffora:DiffoRA",
        "longlora": "harness.methods.attention.longlora:LongLoRA",
        "ls-unllama": "harness.methods.attention.unmasked:LsUnLlama",
        "layerwise-unmask": "harness.methods.attention.unmasked:LayerwiseUnmasked",
        "qst": "harness.methods.side.qst:QST",
        "lst": "harness.methods.side.lst:LST",
        "peqa": "harness.methods.quantized.peqa:PEQA",
        "int21": "harness.methods.quantized.int21:Int21",
        "sketchtune": "harness.methods.quantized.sketchtune:SketchTune",
        "slora": "harness.methods.lowrank.nystrom:SLoRA",
        "nlora": "harness.methods.lowrank.nystrom:NLoRA",
        "inttune": "harness.methods.lowrank.nystrom:IntTune",
        "loldu": "harness.methods.lowrank.loldu:LoLDU",
        "nola": "harness.methods.lowrank.nola:NOLA",
        "ba-lora": "harness.methods.lowrank.balora:BALoRA",
        "lora-ggpo": "harness.methods.lowrank.ggpo:LoRAGGPO",
        **{name: f"harness.methods.peft.table:{name}" for name in table()},
    },
)
"""The registry behind the key ``methods`` of a sweep."""


def to_markdown() -> str:
    """The page ``docs/methods.md``: every method with what it promises, from the declarations alone."""
    declarations = [METHODS.get(name).declaration for name in METHODS]
    families = list(dict.fromkeys(d.family for d in declarations))
    lines = [_INTRODUCTION.replace("BASES", ", ".join(sorted(_EVERY)))]
    for family in families:
        lines += ["", f"## {family.capitalize()}"]
        for declaration in (d for d in declarations if d.family == family):
            lines += ["", *_section(declaration)]
    lines += ["", "## Not offered", ""]
    lines += [f"- `{config}`: {why}." for config, why in NOT_OFFERED.items()]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
# Methods

Every fine-tuning method that a sweep can name, as declared in `harness/methods/`. This page is generated by
`harness.methods.catalog.to_markdown()` and a test holds it to the declarations.

- **Trains** is the number of parameters that the worker demands right after the method is attached. A target maps n
  inputs to m outputs; r is the rank; Σ runs over the targets. A sequence classifier's fresh head comes on top.
- **Learning rate** is the centre of the search, as a multiple of the sweep's `learning_rate`, which is full
  fine-tuning's.
- **Bases** are what a quantizer leaves (`fp`: floating point). All are BASES.
  [Compatibility](compat.md) lists the quantizers on which a method does not train or does not merge, with the reasons.
- **Starts as the base**: the attached model computes what the base does, unless a method says no.
- **Merges** says whether the adapter folds into a floating-point base without changing the function. `in place`: the
  method trains the base itself, and merging changes nothing. A merge into a quantized base rounds again; the harness
  scores every merged model once more.
- A paper without a version is the one that peft's implementation names; the formula, not the paper's text, is tested.
- Parameters in addition to the defaults: for a method of peft, every field of its configuration class, under peft's own
  name or as `alpha`, `dropout` and `init`."""


def _section(d: Declaration) -> list[str]:
    paper = f" [arXiv:{d.paper}](https://arxiv.org/abs/{d.paper})" if d.paper else ""
    unverified = " *Unverified: declared from recollection, not from the paper's text.*" if d.unverified else ""
    merges = _MERGES[d.mergeable] if not d.in_place else "in place" if d.trains else "nothing to merge"
    parameters = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in d.defaults.items())
    lines = [
        f"### {d.name}",
        "",
        f"{d.summary}{paper}{unverified}",
        "",
        f"- Trains: {d.trainable}",
        f"- Learning rate: {d.lr_factor:g} × full fine-tuning's"
        if d.trains
        else "- Learning rate: none, nothing trains",
        f"- Defaults: {parameters or 'no parameters'} ({d.defaults_source})",
        *([] if d.identity_at_start else ["- Starts as the base: no"]),
        f"- Bases: {_bases(d.bases)}",
        f"- Merges: {merges}",
    ]
    if d.devices == {"cuda"}:
        lines.append("- Devices: CUDA only")
    lines += [f"- Not for {kind}: {why}" for kind, why in sorted(d.refuses_kind.items())]
    return lines


_EVERY = bases.ALL | bases.DYNAMIC | bases.OTHER


def _bases(trains_on: frozenset[str]) -> str:
    lacks = sorted(_EVERY - trains_on)
    if len(lacks) >= len(trains_on):
        return ", ".join(sorted(trains_on))
    return f"all but {', '.join(lacks)}" if lacks else "all"


_MERGES = {"exactly": "exactly", "lossily": "with a loss", "no": "no"}
