"""Proxy-tuning: a small tuned model and its untuned self steer a large one, logit by logit (arXiv:2401.08565)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported
from harness.methods import bases
from harness.methods.base import Declaration, Ingredient, Method, Workshop
from harness.methods.modules import freeze

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

PASSED_ON = ("attention_mask", "position_ids", "logits_to_keep", "token_type_ids")
"""Arguments of a forward pass that the small models are given as well."""


class ProxyTuning(Method):
    """z = z_large + strength (z_expert - z_anti): row ``of`` on the small model ``from``, tuned and as it was.

    The sum is made in the model's own forward pass, so that scoring and decoding see nothing else. The small models
    read the whole text at every token: their states are not cached, and the large model's cache is not returned.
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
        strength = float(self.params["strength"])

        def steer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            inputs = {name: kwargs[name] for name in PASSED_ON if kwargs.get(name) is not None}
            inputs["input_ids"] = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            difference = expert(**inputs).logits[:, -output.logits.shape[1] :] - anti(**inputs).logits
            output.logits = output.logits + strength * difference.to(output.logits.dtype)
            output.past_key_values = None  # a later call with a cache would give the small models one token alone
            return output

        model.register_forward_hook(steer, with_kwargs=True)
        untyped: Any = model
        if getattr(untyped, "generation_config", None) is not None:
            untyped.generation_config.use_cache = False
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """The tuned part: the small model's adapter."""
        self._ingredient.method.save(self._expert, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Steer a fresh large model."""
        return self._steered(self.attach(base), self._ingredient, folder)


def _config(model: nn.Module) -> Any:
    untyped: Any = model
    return untyped.config.get_text_config()
