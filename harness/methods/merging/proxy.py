"""Proxy-tuning: a small tuned model and its untuned self steer a large one, logit by logit (arXiv:2401.08565)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, ref

from harness.errors import Unsupported
from harness.methods import bases
from harness.methods.base import Declaration, Ingredient, Method, Workshop
from harness.methods.modules import freeze

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

PASSED_ON = ("attention_mask", "position_ids", "logits_to_keep", "token_type_ids")
"""Arguments of a forward pass that the small models are given as well."""


class ProxyTuning(Method):
    """z = z_large + strength (z_expert - z_anti): row ``of`` on the small model ``from``, tuned and as it was.

    The sum is made in the model's own forward pass, so that scoring and decoding see nothing else. While a text is
    decoded, the caches of the small models are kept with the large model's, so each of the three reads a token once.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="proxy-tuning",
        summary="A large model's logits are shifted by what tuning did to a small model's; the large one is untouched.",
        family="after training",
        trainable="None; the small model was tuned by the row that `of` names.",
        paper="2401.08565",
        kinds=frozenset({"causal-lm"}),
        refuses_kind={"sequence-classification": "a fresh classification head is no answer that tuning could shift"},
        bases=bases.ALL | bases.DYNAMIC | bases.OTHER,
        defaults={"of": None, "from": None, "strength": 1.0},
        defaults_source="the whole difference, as in the paper",
        trains=False,
        needs_second_model=True,
        combines=True,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """The large model, frozen."""
        freeze(model)
        return model

    def expected_trainable(self, model: nn.Module) -> int | None:
        """None of its parameters."""
        return 0

    def finalize(self, model: nn.Module, workshop: Workshop) -> nn.Module:
        """Attach the two small models to the large one.

        Raises:
            Unsupported: their vocabulary differs.
        """
        (ingredient,) = workshop.ingredients
        self._ingredient = ingredient
        return self._steered(model, ingredient, ingredient.folder)

    def _steered(self, model: nn.Module, ingredient: Ingredient, folder: Path) -> nn.Module:
        expert = ingredient.method.load(ingredient.base(), folder)
        anti = ingredient.base()
        like, small = (_config(m) for m in (model, anti))
        if like.vocab_size != small.vocab_size:
            raise Unsupported(
                f"{ingredient.label} knows {small.vocab_size} tokens and this model {like.vocab_size}: their logits "
                "do not add"
            )
        for part in (expert, anti):
            freeze(part)
            part.eval()
        self._expert = expert
        steering = Steering(expert, anti, float(self.params["strength"]))
        model.register_forward_hook(steering, with_kwargs=True)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """The tuned part: the small model's adapter."""
        self._ingredient.method.save(self._expert, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Steer a fresh large model."""
        return self._steered(self.attach(base), self._ingredient, folder)


class Steering:
    """Forward hook that adds strength (z_expert - z_anti) to a model's logits.

    Args:
        expert: the tuned small model; ``anti``: the same, untuned.
    """

    def __init__(self, expert: nn.Module, anti: nn.Module, strength: float) -> None:
        self.parts = (expert, anti)
        self.strength = strength
        self._caches: WeakKeyDictionary[Cache, tuple[Cache, Cache]] = WeakKeyDictionary()

    def __call__(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The output with the sum of the logits."""
        inputs = {name: kwargs[name] for name in PASSED_ON if kwargs.get(name) is not None}
        inputs["input_ids"] = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        own = output.past_key_values
        caches = self._caches_of(own, inputs["input_ids"].shape[1])
        found = [
            part(**inputs, past_key_values=cache, use_cache=cache is not None)
            for part, cache in zip(self.parts, caches, strict=True)
        ]
        seen = output.logits.shape[1]
        difference = found[0].logits[:, -seen:] - found[1].logits[:, -seen:]
        output.logits = output.logits + self.strength * difference.to(output.logits.dtype)
        return output

    def _caches_of(self, own: Cache, tokens: int) -> tuple[Cache, Cache]:
        """The small models' caches for the large model's cache ``own``, which holds ``tokens`` of this call already.

        Raises:
            RuntimeError: ``own`` was filled or changed outside of this hook, so that the small models miss a part.
        """
        from transformers import DynamicCache

        if own is None:
            return None, None
        before = own.get_seq_length() - tokens
        if own not in self._caches or before == 0:
            self._caches[own] = (DynamicCache(), DynamicCache())
            _change_together(own, self._caches[own])
        caches = self._caches[own]
        if any(cache.get_seq_length() != before for cache in caches):
            raise RuntimeError(
                "proxy-tuning: the cache of the large model was not filled together with the small models'"
            )
        return caches


CHANGES = ("batch_select_indices", "batch_repeat_interleave", "reorder_cache", "crop", "reset")
"""Methods by which decoding and scoring change a cache between two passes."""


def _change_together(cache: Cache, others: tuple[Cache, ...]) -> None:
    """Make every change of ``cache`` a change of ``others`` as well."""

    own = ref(cache)  # a strong one would keep the caches until the garbage collector finds the circle

    def of_all(name: str) -> Callable[..., None]:
        def change(*args: object, **kwargs: object) -> None:
            for one in (own(), *others):
                getattr(type(one), name)(one, *args, **kwargs)

        return change

    for name in CHANGES:
        setattr(cache, name, of_all(name))


def _config(model: nn.Module) -> PreTrainedConfig:
    untyped: PreTrainedModel = model
    return untyped.config.get_text_config()
