"""Baselines that train the model's own tensors: none, head, full, BitFit and parts of the depth."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError
from harness.methods import bases
from harness.methods.base import PARALLEL, Declaration, Method, ShownExamples
from harness.methods.modules import (
    add_bias,
    blocks,
    classifier,
    count,
    freeze,
    linears,
    load_tensors,
    output_head,
    save_trainable,
)
from harness.models import conv1d

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers import PreTrainedModel

CAUSAL_LM = frozenset({"causal-lm"})
CLASSIFICATION = frozenset({"sequence-classification"})
ONLY_FP = frozenset({"fp"})


class InPlace(Method):
    """A method that trains some of the base's own tensors: those that :meth:`chosen` yields, and the classifier."""

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """The parameters to train, in addition to a sequence classifier's head."""
        raise NotImplementedError

    def _trained(self, model: nn.Module) -> list[nn.Parameter]:
        head = classifier(model)
        return [*self.chosen(model), *(head.parameters() if head is not None else ())]

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the model but for the chosen parameters."""
        freeze(model)
        for parameter in self._trained(model):
            parameter.requires_grad_(True)
        return model

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Elements of the chosen parameters and of the classifier."""
        return count(self._trained(model))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained tensors and nothing else."""
        save_trainable(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Copy the trained tensors into a fresh base."""
        model = self.attach(base)
        load_tensors(model, folder)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is: its own tensors were trained."""
        return model


class NoTraining(Method):
    """The model as it comes: zero-shot."""

    declaration: ClassVar[Declaration] = Declaration(
        name="none",
        summary="The model without any training: the zero-shot reference for every other row.",
        family="baseline",
        trainable="None.",
        kinds=CAUSAL_LM,
        refuses_kind={
            "sequence-classification": "without training a fresh classification head answers at random; use 'head'"
        },
        bases=bases.ALL | bases.DYNAMIC | bases.OTHER,
        mergeable="exactly",
        defaults_source="nothing to set",
        trains=False,
        in_place=True,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """The model itself, frozen."""
        freeze(model)
        return model

    def expected_trainable(self, model: nn.Module) -> int | None:
        """None of its parameters."""
        return 0

    def save(self, model: nn.Module, folder: Path) -> None:
        """There is nothing to write."""

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """The base itself."""
        return self.attach(base)

    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model


class FewShot(NoTraining):
    """In-context learning: k worked examples precede every prompt.

    The same examples for all items, drawn by the seed from the training split: two items then differ in what is asked
    and in nothing else, and how much the choice of examples matters shows between the seeds.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="few-shot",
        summary="The model as it comes; k examples of the training split, with their answers, precede every prompt.",
        family="baseline",
        trainable="None.",
        paper="2005.14165",
        kinds=CAUSAL_LM,
        refuses_kind={
            "sequence-classification": (
                "examples are read by a language model; a classification head reads one text and nothing trains it here"
            )
        },
        bases=bases.ALL | bases.DYNAMIC | bases.OTHER,
        mergeable="exactly",
        defaults={"k": 5, "separator": "\n\n"},
        defaults_source="five examples with an empty line after each, as lm-eval's tasks are mostly reported",
        trains=False,
        in_place=True,
        demonstrates=True,
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: an unknown parameter, a k that is no positive number, an empty separator.
        """
        resolved = super().resolve(params, where=where)
        k, separator = resolved["k"], resolved["separator"]
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(
                f"few-shot needs a whole number of examples, not k = {k!r}", where=where, fix="k: 1 or more."
            )
        if not isinstance(separator, str) or not separator:
            raise UserError("few-shot needs a text between its examples", where=where, fix=r'separator: "\n\n", say.')
        return resolved

    def shows(self, available: int) -> ShownExamples:
        """k positions, drawn by the seed."""
        k = int(self.params["k"])
        if k > available:
            raise UserError(
                f"few-shot shows {k} examples, and the task has {available} training items here",
                fix="Lower k, or raise train_items.",
            )
        drawn = random.Random(self.setting.seed).sample(range(available), k)
        return ShownExamples(tuple(drawn), str(self.params["separator"]))


class Head(InPlace):
    """Linear probe: a fresh classification head on a frozen body."""

    declaration: ClassVar[Declaration] = Declaration(
        name="head",
        summary="Linear probe: only the fresh classification head is trained, on the features of a frozen body.",
        family="baseline",
        trainable="All parameters of the head.",
        paper="1610.01644",
        kinds=CLASSIFICATION,
        refuses_kind={"causal-lm": "a language model's head is part of what was pre-trained; see 'embed-head'"},
        bases=bases.ALL | bases.DYNAMIC | bases.OTHER,
        mergeable="exactly",
        defaults_source="nothing to set; the learning rate is a fresh layer's, ten times that of trained weights",
        lr_factor=10.0,
        in_place=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Nothing but the head."""
        yield from ()


class Full(InPlace):
    """Full fine-tuning: every parameter is trained."""

    declaration: ClassVar[Declaration] = Declaration(
        name="full",
        summary="Full fine-tuning: every parameter of the model is trained; the reference arm.",
        family="baseline",
        trainable="All parameters.",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults_source="nothing to set; its learning rate is the unit of every other method's lr_factor",
        trained_fraction=1.0,
        parallel=PARALLEL,
        in_place=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """All parameters."""
        yield from model.parameters()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a whole checkpoint that ``from_pretrained`` reads."""
        saver: PreTrainedModel = model
        saver.save_pretrained(folder, **conv1d.for_saving(model))

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Read the checkpoint through the model class's own loader and copy it into the base."""
        like: PreTrainedModel = base
        saved = type(like).from_pretrained(folder, config=like.config, dtype=like.dtype)
        conv1d.to_linear(saved)
        base.load_state_dict(saved.state_dict())
        return self.attach(base)


class LayerwiseDecay(Full):
    """Full fine-tuning whose learning rate falls with the distance from the output."""

    declaration: ClassVar[Declaration] = Declaration(
        name="llrd",
        summary="Full fine-tuning; the learning rate falls by a constant factor with each block nearer the input.",
        family="baseline",
        trainable="All parameters.",
        paper="1801.06146",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"decay": 0.95},
        defaults_source="per-block factor as in ELECTRA's and BERT's fine-tuning recipes (2006.05987)",
        in_place=True,
    )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with a group per depth d: lr·decay^d; head d = 0, last block 1, …, embeddings L + 1."""
        import torch

        s = self.setting
        groups = [
            {"params": group, "lr": s.learning_rate * self.params["decay"] ** depth}
            for depth, group in sorted(self.depths(model).items())
        ]
        return torch.optim.AdamW(groups, **s.adamw)

    def depths(self, model: nn.Module) -> dict[int, list[nn.Parameter]]:
        """Trainable parameters by their distance from the output."""
        prefix, layers = blocks(model)
        groups: dict[int, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if name.startswith(f"{prefix}."):
                depth = len(layers) - int(name.removeprefix(f"{prefix}.").split(".")[0])
            elif "embed" in name:
                depth = len(layers) + 1
            else:
                depth = 0
            groups.setdefault(depth, []).append(parameter)
        return groups


class LastBlocks(InPlace):
    """The last blocks only."""

    declaration: ClassVar[Declaration] = Declaration(
        name="last-k",
        summary="Only the last k transformer blocks (and a classifier's head) are trained.",
        family="baseline",
        trainable="All parameters of the last k blocks, and a classifier's head.",
        paper="1911.03090",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"k": 2},
        defaults_source="the paper: a fourth of the blocks reach most of full fine-tuning; 2 is that of a small model",
        parallel=frozenset({"ddp"}),
        in_place=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Parameters of the last k blocks."""
        for block in list(blocks(model)[1])[-self.params["k"] :]:
            yield from block.parameters()


class ReinitTop(Full):
    """Full fine-tuning after the last blocks were set back to a fresh start."""

    declaration: ClassVar[Declaration] = Declaration(
        name="reinit-top",
        summary="The last k blocks (and an encoder's pooler) start from random values again; then all is trained.",
        family="baseline",
        trainable="All parameters.",
        paper="2006.05987",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"k": 1},
        defaults_source="the paper's range begins at one block; which k is best depends on the task",
        identity_at_start=False,
        in_place=True,
        unverified=True,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """Draw the last blocks again, with the architecture's own initialisation; free every parameter."""
        import torch

        like: PreTrainedModel = model
        _, layers = blocks(model)
        tops = [*list(layers)[len(layers) - int(self.params["k"]) :]]
        pooler = getattr(getattr(like, like.base_model_prefix, None), "pooler", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed)
            for module in (m for top in (*tops, *([pooler] if pooler is not None else [])) for m in top.modules()):
                for parameter in module.parameters(recurse=False):
                    vars(parameter).pop("_is_hf_initialized", None)
                vars(module).pop("_is_hf_initialized", None)
                like._init_weights(module)
        return super().attach(model)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Load the saved weights; nothing is drawn."""
        model = Full.attach(self, base)
        like: PreTrainedModel = model
        saved = type(like).from_pretrained(folder, config=like.config, dtype=like.dtype)
        model.load_state_dict(saved.state_dict())
        return model


class FreezeLow(InPlace):
    """Everything but the embeddings and the lowest blocks."""

    declaration: ClassVar[Declaration] = Declaration(
        name="freeze-low",
        summary="The embeddings and the lowest share of the blocks stay frozen; everything above is trained.",
        family="baseline",
        trainable="All parameters above the frozen blocks.",
        paper="1911.03090",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"share": 0.5},
        defaults_source="half of the depth, the middle of the range in the paper",
        in_place=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Parameters outside the embeddings and the first ⌈share·L⌉ blocks."""
        prefix, layers = blocks(model)
        frozen = math.ceil(self.params["share"] * len(layers))
        lowest = tuple(f"{prefix}.{i}." for i in range(frozen))
        for name, parameter in model.named_parameters():
            if not name.startswith(lowest) and "embed" not in name:
                yield parameter


class EmbeddingsAndHead(InPlace):
    """The two ends of the model."""

    declaration: ClassVar[Declaration] = Declaration(
        name="embed-head",
        summary="Only the input embeddings and the output head are trained; the blocks between stay frozen.",
        family="baseline",
        trainable="All parameters of the word embeddings and of the head; a tied tensor counts once.",
        bases=bases.ALL,
        refuses=bases.because(bases.NO_GRADIENT, bases.DYNAMIC),
        mergeable="exactly",
        defaults_source="nothing to set",
        in_place=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Parameters of the word embeddings and of the head."""
        like: PreTrainedModel = model
        yield from like.get_input_embeddings().parameters()
        head = output_head(model)
        if head is not None:
            yield from head.parameters()


class BitFit(InPlace):
    """Bias terms only; linear layers without one are given a bias of zeros."""

    declaration: ClassVar[Declaration] = Declaration(
        name="bitfit",
        summary="Only the biases are trained; linear layers that have none get one that starts at zero.",
        family="selective",
        trainable="Every bias, one number per output of each linear layer without one, and a classifier's head.",
        paper="2106.10199",
        bases=bases.ALL,
        refuses=bases.because(bases.NO_GRADIENT, bases.DYNAMIC),
        mergeable="exactly",
        defaults_source="nothing to set; the paper's learning rates, 1e-4 to 4e-4, are about ten times full's",
        lr_factor=10.0,
        parallel=PARALLEL,
        in_place=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """All biases."""
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                yield parameter

    def expects_gradient(self, name: str) -> bool:
        """A bias on keys without rotary positions moves all scores of a query alike, which the softmax takes out."""
        return not name.endswith("key.bias")

    def attach(self, model: nn.Module) -> nn.Module:
        """Add the missing biases, then free all of them."""
        like: PreTrainedModel = model
        for layer in linears(model):
            if not layer.bias:
                add_bias(model.get_submodule(layer.name), like.dtype)
        return super().attach(model)

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Existing biases, one entry per output of each linear layer without one, and the classifier."""
        added = sum(layer.outputs for layer in linears(model) if not layer.bias)
        return count(self._trained(model)) + added
