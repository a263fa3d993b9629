"""The one class behind every row of the peft table. peft is imported only when a model is attached or loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported, UserError, did_you_mean, shown
from harness.methods.base import Method, ModelKind
from harness.methods.modules import Linear, classifier, count, linears, named_by, no_module, targeted
from harness.methods.peft.row import PeftRow
from harness.silence_stderr import quiet_stderr

if TYPE_CHECKING:  # heavy, and only for types
    from peft import PeftConfig, PeftModel
    from torch import nn

TASK_TYPES: dict[ModelKind, str] = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}

NOT_PARAMETERS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)
"""Fields of every peft configuration that describe the run, not the method."""

POSITIVE = frozenset({"r", "rank", "alpha", "lora_alpha", "num_virtual_tokens", "init_r", "target_r", "adapter_len"})
"""Sizes that no method can use at 0 or below."""

CHANGES_THE_COUNT = frozenset(
    {"target_parameters", "layer_replication", "trainable_token_indices", "megatron_config", "modules_to_save"}
)
"""Options whose trainable count the formulas do not follow; with one of them set, no count is promised."""


class PeftMethod(Method):
    """A method of peft, as its row says; ``own`` are parameters of ours that peft's configuration does not have."""

    row: ClassVar[PeftRow]
    own: ClassVar[frozenset[str]] = frozenset()

    # --- before any model is there -------------------------------------------------------------
    @classmethod
    def resolve(cls, params: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """The row's defaults overlaid with the sweep's parameters.

        A name beyond the row's own defaults is looked up in the installed configuration class.

        Raises:
            UserError: a parameter that this method or the installed peft does not have, or one of the wrong type.
        """
        name, known = cls.declaration.name, cls.declaration.defaults
        ours = {theirs: mine for mine, theirs in cls.row.renamed.items()}
        resolved = dict(known)
        for key, value in params.items():
            own = ours.get(key, key)
            if own != key and own in params:
                raise UserError(f"{own!r} and {key!r} are the same parameter", where=where, fix="Give one of them.")
            if own not in known and own not in cls._options():
                raise UserError(
                    f"method {name!r} has no parameter {key!r}",
                    where=where,
                    fix=did_you_mean(key, {*known, *cls._options()}),
                )
            if _is_number(known.get(own)) and not _is_number(value):
                raise UserError(f"{key} of method {name!r} must be a number, not {shown(value)}", where=where)
            if own in POSITIVE and _is_number(value) and value <= 0:
                raise UserError(f"{key} of method {name!r} must be above 0, not {shown(value)}", where=where)
            resolved[own] = value
        return resolved

    @classmethod
    def missing(cls, params: Mapping[str, object]) -> str | None:
        """The row's optional package."""
        if cls.row.needs is not None and util.find_spec(cls.row.needs[0]) is None:
            name, pip = cls.declaration.name, cls.row.needs[1]
            return f"{name} needs the package {pip!r}, which peft does not install: pip install {pip}"
        return None

    @classmethod
    def _options(cls) -> set[str]:
        """Every parameter that the installed configuration class takes, by our names."""
        ours = {theirs: mine for mine, theirs in cls.row.renamed.items()}
        inner = cls.row.nested
        hidden = NOT_PARAMETERS | cls.row.fixed.keys() | ({inner[0]} if inner else set())
        names = {f.name for f in fields(cls._config_class())} - hidden
        return {ours.get(name, name) for name in names} | cls._nested_options()

    @classmethod
    def _nested_options(cls) -> set[str]:
        if cls.row.nested is None:
            return set()
        from peft.tuners.lora import config

        return {f.name for f in fields(getattr(config, cls.row.nested[1])) if f.init}

    @classmethod
    def _config_class(cls) -> type[PeftConfig]:
        with quiet_stderr():
            import peft

        found: type[PeftConfig] = getattr(peft, cls.row.config)
        return found

    # --- attaching -----------------------------------------------------------------------------
    def config(self, model: nn.Module) -> PeftConfig:
        """The peft configuration of this cell for this base."""
        from peft.tuners.lora import config

        params = {**self.config_params(model), **self.row.fixed}
        if self.row.nested is not None:
            field, class_name = self.row.nested
            inner = {name: params.pop(name) for name in self._nested_options() & params.keys()}
            params[field] = getattr(config, class_name)(**inner)
        return self._config_class()(**params, task_type=TASK_TYPES[self.setting.kind])

    def config_params(self, model: nn.Module) -> dict[str, Any]:
        """The cell's parameters by peft's names, with ``auto`` decided and ``all-linear`` spelt out.

        peft's own ``all-linear`` overlooks the layers of back ends that do not build on ``torch.nn.Linear``.
        """
        params = {name: value for name, value in self.params.items() if name not in self.own}
        if params.get("target_modules") == "all-linear":
            params["target_modules"] = [layer.name for layer in linears(model)]
        for name, (side, limit) in self.row.divisors.items():
            if params[name] == "auto":
                layers = targeted(linears(model), params["target_modules"])
                sizes = [size for t in layers for size in _sizes(t, side)]
                params[name] = max(d for d in range(1, limit + 1) if math.gcd(*sizes) % d == 0)
        return {self.row.renamed.get(name, name): value for name, value in params.items()}

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model; what peft adds is trained, and a classifier's fresh head."""
        from peft import get_peft_model

        config = self.config(model)
        names = getattr(config, "target_modules", None)
        if names is not None and not any(named_by(n, names) for n, _ in model.named_modules()):
            raise Unsupported(f"{self.declaration.name}: {no_module(model, names)}")
        return get_peft_model(model, config)  # type: ignore[no-any-return]  # peft has no types

    def expected_trainable(self, model: nn.Module) -> int | None:
        """The row's formula, plus a sequence classifier's head and the biases that were asked for."""
        config = self.config(model)
        if any(getattr(config, option, None) for option in CHANGES_THE_COUNT):
            return None
        targets = self._targets(model, config)
        if len(targets) < self._named(model, config):  # embeddings, or the output layer, which may be tied to them
            return None
        added = self.row.count(targets, config, model)
        if added is None:
            return None
        head = classifier(model) if self.setting.kind == "sequence-classification" else None
        return added + (count(head.parameters()) if head is not None else 0) + _biases(model, targets, config)

    def _named(self, model: nn.Module, config: PeftConfig) -> int:
        """How many modules of any kind ``target_modules`` names; 0 where it names parts of the formula's layers."""
        names = getattr(config, "target_modules", None)
        if not names or isinstance(names, str):
            return 0
        outside = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out"}
        return (
            sum(named_by(n, names) for n, _ in model.named_modules())
            if outside & {n.split(".")[-1] for n in names}
            else 0
        )

    def _targets(self, model: nn.Module, config: PeftConfig) -> list[Linear]:
        chosen = targeted(linears(model), getattr(config, "target_modules", None) or ())
        excluded = targeted(chosen, getattr(config, "exclude_modules", None) or ())
        only = getattr(config, "layers_to_transform", None)
        numbers = {only} if isinstance(only, int) else set(only or ())
        return [
            layer
            for layer in chosen
            if layer not in excluded
            and (not numbers or numbers & {int(p) for p in layer.name.split(".") if p.isdigit()})
        ]

    def expects_gradient(self, name: str) -> bool:
        """All but what the row says rightly gets none."""
        return not any(re.search(pattern, name) for pattern in self.row.no_gradient)

    # --- afterwards ----------------------------------------------------------------------------
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter as peft does; never the base's embeddings, which are not trained."""
        adapted: PeftModel = model
        adapted.save_pretrained(folder, save_embedding_layers=False)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Put the adapter onto a fresh base."""
        from peft import PeftModel

        return PeftModel.from_pretrained(base, folder)  # type: ignore[no-any-return]  # peft has no types

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the adapter into the base's weights and drop the wrappers."""
        adapted: PeftModel = model
        return adapted.merge_and_unload()  # type: ignore[no-any-return]  # peft has no types


def _sizes(layer: Linear, side: str) -> tuple[int, ...]:
    return {"inputs": (layer.inputs,), "outputs": (layer.outputs,), "both": (layer.inputs, layer.outputs)}[side]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _biases(model: nn.Module, targets: list[Linear], config: PeftConfig) -> int:
    """Entries of the base's own biases that ``bias: all`` or ``bias: …_only`` trains."""
    wanted = getattr(config, "bias", "none")
    if wanted == "none":
        return 0
    if wanted == "all":
        return count(p for n, p in model.named_parameters() if n.endswith("bias"))
    return sum(layer.outputs for layer in targets if layer.bias)
