"""Classes of the rows of the peft table that need a hook: data, an optimizer, a custom step, or the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported, UserError, shown
from harness.methods.base import Batch
from harness.methods.modules import add_bias, blocks, linears, targeted
from harness.methods.peft.initialisations import Corda as Corda
from harness.methods.peft.initialisations import Eva as Eva
from harness.methods.peft.initialisations import LoftQ as LoftQ
from harness.methods.peft.initialisations import LoraGa as LoraGa
from harness.methods.peft.initialisations import Reparameterized as Reparameterized
from harness.methods.peft.initialisations import inside_blocks
from harness.methods.peft.method import PeftMethod

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput


# --- optimizers --------------------------------------------------------------------------------------
class LoraPlus(PeftMethod):
    """LoRA+: B learns ``lr_ratio`` times faster than A."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """Without the optimizer's parameter."""
        return _without(super().config_params(model), "lr_ratio")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with a group per factor."""
        import torch
        from peft.optimizers import create_loraplus_optimizer

        s = self.setting
        optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=s.learning_rate,
            loraplus_lr_ratio=self.params["lr_ratio"],
            loraplus_weight_decay=s.weight_decay,
            betas=s.betas,
        )
        return optimizer


class LoraFa(PeftMethod):
    """LoRA-FA: A is frozen, and B's gradient is corrected by pinv(A·Aᵀ)/s² to follow the full gradient."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and freeze A."""
        adapted = super().attach(model)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        return adapted

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """peft's AdamW on the corrected gradient."""
        from peft.optimizers import create_lorafa_optimizer

        s, p = self.setting, self.params
        optimizer: torch.optim.Optimizer = create_lorafa_optimizer(
            model, r=p["r"], lora_alpha=p["alpha"], lr=s.learning_rate, weight_decay=s.weight_decay
        )
        for group in optimizer.param_groups:
            group["betas"] = s.betas
        return optimizer


class Riemannian(PeftMethod):
    """Riemannian preconditioning: each factor's gradient is scaled by the inverse of the other's Gram matrix."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """Without the optimizer's parameter."""
        return _without(super().config_params(model), "damping")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW on the preconditioned gradient."""
        import torch
        from peft.optimizers import create_riemannian_optimizer

        s = self.setting
        optimizer: torch.optim.Optimizer = create_riemannian_optimizer(
            model,
            torch.optim.AdamW,
            lr=s.learning_rate,
            reg=self.params["damping"],
            betas=s.betas,
            weight_decay=s.weight_decay,
        )
        return optimizer


# --- steps and losses ------------------------------------------------------------------------------
class AdaLora(PeftMethod):
    """AdaLoRA: singular values of the update are pruned while training, by their sensitivity."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """With the schedule in steps: warm-up and final phase are shares of the training."""
        params = super().config_params(model)
        steps = self.setting.steps
        warmup, final = int(params.pop("warmup_share") * steps), int(params.pop("final_share") * steps)
        return {**params, "tinit": warmup, "tfinal": final, "total_step": steps}

    def task_loss(self, outputs: ModelOutput, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the answers: peft adds the orthogonality term to the model's own loss."""
        from torch.nn.functional import cross_entropy

        logits, labels = outputs.logits, batch["labels"]
        if self.setting.kind == "causal-lm":
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return cross_entropy(logits.float(), labels, ignore_index=-100)

    def on_step(self, model: nn.Module, step: int) -> None:
        """Prune by the schedule; reads the step's gradients."""
        adapted: PeftModel = model
        adapted.base_model.update_and_allocate(step)


class Regularized(PeftMethod):
    """A method whose paper adds a term to the loss that peft offers but does not apply."""

    term: str

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and remember it: the term is a function of its factors."""
        self._adapted: PeftModel = super().attach(model)
        return self._adapted

    def loss(self, outputs: ModelOutput, batch: Batch, reference: torch.Tensor) -> torch.Tensor:
        """The task's loss and the term."""
        return reference + getattr(self._adapted.base_model, self.term)()  # type: ignore[no-any-return]


class Kasa(Regularized):
    """KaSA's penalties on the singular values and on the factors' orthogonality (equations 9 to 11)."""

    term = "_get_kasa_loss"


class MonteClora(Regularized):
    """MonteCLoRA's divergence from the prior."""

    term = "_get_monteclora_loss"


# --- tokens ------------------------------------------------------------------------------------------
class NeedsText(PeftMethod):
    """A method that acts on certain tokens: the sweep must give their text in the parameter ``text_parameter``."""

    text_parameter: str
    token_field: str
    meaning: str

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Same as the base class; the text is required."""
        resolved = super().resolve(params, where=where)
        text = resolved[cls.text_parameter]
        if not isinstance(text, str) or not text:
            name = cls.declaration.name
            raise UserError(f"method {name!r} needs {cls.text_parameter!r}", where=where, fix=f"Give {cls.meaning}.")
        return resolved

    def config_params(self, model: nn.Module) -> dict[str, Any]:
        """With the text as token ids."""
        params = super().config_params(model)
        text = params.pop(self.text_parameter)
        if self.setting.tokenizer is None:
            raise UserError(f"method {self.declaration.name!r} needs the model's tokenizer to look up {text!r}")
        return {**params, self.token_field: self.tokens(text)}

    def tokens(self, text: str) -> list[int]:
        """The ids of the text."""
        assert self.setting.tokenizer is not None  # else the parameters were refused
        return list(self.setting.tokenizer(text, add_special_tokens=False)["input_ids"])


class ActivatedLora(NeedsText):
    """aLoRA: the adapter acts only from the invocation text on."""

    text_parameter = "invocation"
    token_field = "alora_invocation_tokens"
    meaning = "the text, part of every prompt, from which on the adapter shall act, for example invocation: 'Answer:'"


class TrainableTokens(NeedsText):
    """Only the embeddings of the given text's tokens are trained."""

    text_parameter = "text"
    token_field = "token_indices"
    meaning = "the text whose tokens' embeddings shall be trained, for example text: 'Question: Answer:'"

    def tokens(self, text: str) -> list[int]:
        """Each id once."""
        return sorted(set(super().tokens(text)))


# --- prompts -----------------------------------------------------------------------------------------
class Prompt(PeftMethod):
    """Virtual tokens before the input: the logits of their positions are cut off, so that they match the input's."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model; its logits line up with the input."""
        return _cut_virtual_positions(super().attach(model))

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """As :meth:`attach`, with the saved prompt."""
        return _cut_virtual_positions(super().load(base, folder))


class MultitaskPrompt(Prompt):
    """Multitask prompt tuning in a single-task cell: every sequence belongs to task 0."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and name the task."""
        return _first_task(super().attach(model), "prefix_task_cols")

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """As :meth:`attach`, with the saved prompt."""
        return _first_task(super().load(base, folder), "prefix_task_cols")


class ContextPrompt(Prompt, NeedsText):
    """CPT: worked examples precede every input, and their embeddings move inside a small ball around where they start.

    The examples are training items, drawn in ``prepare``: their prompts are input (type 2 of peft's four), their
    answers labels (type 4), which count in the loss, the less the further from the input; embeddings of labels stay
    fixed. A ``context`` given as text is input from end to end.
    """

    text_parameter = "context"
    token_field = "cpt_token_ids"
    own = frozenset({"examples"})

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Same as the base class; examples are drawn where no text is given.

        Raises:
            UserError: neither.
        """
        resolved = super(NeedsText, cls).resolve(params, where=where)
        text, number = resolved["context"], resolved["examples"]
        if text is not None and (not isinstance(text, str) or not text):
            raise UserError(f"context of cpt must be a text, not {shown(text)}", where=where)
        if text is None and (not isinstance(number, int) or number < 1):
            raise UserError(f"examples of cpt must be a whole number above 0, not {shown(number)}", where=where)
        return resolved if text is None else {k: v for k, v in resolved.items() if k != "examples"}

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> dict[str, object] | None:
        """Draw the examples, where no text is given."""
        if self.params["context"] is not None:
            return None
        self._context: list[int] = []
        self._types: list[int] = []
        wanted = int(self.params["examples"])
        rows = ((b, row) for b in batches(wanted) for row in range(len(b["input_ids"])))
        for number, (batch, row) in zip(range(wanted), rows, strict=False):
            kept = batch["attention_mask"][row].bool()
            labelled = (batch["labels"][row] != -100)[kept].tolist()
            self._context += batch["input_ids"][row][kept].tolist()
            self._types += [4 * number + (4 if label else 2) for label in labelled]
        return {"context_tokens": len(self._context), "label_tokens": sum(t % 4 == 0 for t in self._types)}

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """The context's tokens and what each of them is."""
        if self.params["context"] is not None:
            params = super().config_params(model)
            params["cpt_tokens_type_mask"] = [2] * len(params["cpt_token_ids"])
        else:
            params = super(NeedsText, self).config_params(model)
            params.pop("context")
            params["cpt_token_ids"], params["cpt_tokens_type_mask"] = self._context, self._types
        return {**params, "cpt_mask": [1] * len(params["cpt_token_ids"])}

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model; its loss counts the labelled tokens only."""
        return _mark_labels(super().attach(model))

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """As :meth:`attach`, with the saved prompt."""
        return _mark_labels(super().load(base, folder))

    def task_loss(self, outputs: ModelOutput, batch: Batch) -> torch.Tensor:
        """Of the input's own answer; the model's loss is over the examples' answers too."""
        from torch.nn.functional import cross_entropy

        length = batch["labels"].shape[1]
        logits, labels = outputs.logits[:, -length:][:, :-1], batch["labels"][:, 1:]
        return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


class Poly(PeftMethod):
    """Polytropon in a single-task cell: every sequence belongs to task 0."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """With the targets inside the blocks only: peft's layers want sequences, a pooler sees single vectors."""
        params = super().config_params(model)
        return {**params, "target_modules": inside_blocks(model, params["target_modules"])}

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and name the task."""
        return _first_task(super().attach(model), "poly_lora_A")

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """As :meth:`attach`, with the saved adapter."""
        return _first_task(super().load(base, folder), "poly_lora_A")


class AdaptionPrompt(PeftMethod):
    """LLaMA-Adapter: prompts with a gate that starts at zero, in the upper blocks' attention."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Only on the architectures whose attention peft rewrites for it."""
        from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

        like: PreTrainedModel = model
        if like.config.model_type not in TRANSFORMERS_MODEL_CONFIG:
            known = ", ".join(sorted(TRANSFORMERS_MODEL_CONFIG))
            raise Unsupported(f"llama-adapter rewrites the attention of {known} models only")
        return super().attach(model)

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """With ``adapter_layers: all`` as a number."""
        params = super().config_params(model)
        if params["adapter_layers"] == "all":
            params["adapter_layers"] = len(blocks(model)[1])
        return params


class Lily(PeftMethod):
    """Lily: layers of one kind share their factors; the kinds are the targets' last names."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """With last names: given whole paths, peft would share nothing."""
        params = super().config_params(model)
        names = {layer.name.rsplit(".", 1)[-1] for layer in targeted(linears(model), params["target_modules"])}
        return {**params, "target_modules": sorted(names)}


class Norms(PeftMethod):
    """LN-tuning: every normalisation layer, under any name."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """With the normalisation layers by name."""
        names = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
        return {**super().config_params(model), "target_modules": names}


class Beft(PeftMethod):
    """BEFT: where a layer has no bias, the trained one becomes its bias."""

    def merge(self, model: nn.Module) -> nn.Module:
        """Give such layers a bias of zeros first: peft only adds to what is there."""
        adapted: PeftModel = model
        for module in adapted.modules():
            if hasattr(module, "beft_bias") and module.get_base_layer().bias is None:
                add_bias(module.get_base_layer(), adapted.dtype)
        return super().merge(model)


class Shadow(PeftMethod):
    """ShadowPEFT: the update of the shadow after the last block is not used."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and remember which block is the last."""
        prefix, layers = blocks(model)
        self._last = f"{prefix}.{len(layers) - 1}.shadow_update"
        return super().attach(model)

    def expects_gradient(self, name: str) -> bool:
        """All but the last block's update."""
        return self._last not in name


class Glora(PeftMethod):
    """GLoRA: the factor D of a bias that is zero, as a fresh pooler's is, changes nothing and gets no gradient."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and remember the layers whose bias is zero."""
        adapted = super().attach(model)
        self._idle = tuple(
            f"{name}.glora_D."
            for name, module in adapted.named_modules()
            if hasattr(module, "glora_D") and module.bias is not None and not bool(module.bias.any())
        )
        return adapted

    def expects_gradient(self, name: str) -> bool:
        """All but the row's exceptions and those factors."""
        return super().expects_gradient(name) and not name.startswith(self._idle)


# --- helpers -----------------------------------------------------------------------------------------
def _without(params: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in params.items() if key != name}


def _cut_virtual_positions(adapted: nn.Module) -> nn.Module:
    def cut(_: object, args: Any, kwargs: dict[str, Any], outputs: ModelOutput) -> object:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if outputs.logits.ndim == 3 and outputs.logits.shape[1] > ids.shape[1]:
            outputs.logits = outputs.logits[:, -ids.shape[1] :]
        return outputs

    adapted.register_forward_hook(cut, with_kwargs=True)
    return adapted


def _first_task(adapted: nn.Module, marker: str) -> nn.Module:
    """Give ``task_ids`` of zeros to every module that holds the attribute ``marker``."""

    def task_zero(
        _: object, args: tuple[Any, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        import torch

        kwargs["task_ids"] = torch.zeros(len(args[0]), dtype=torch.long, device=args[0].device)
        return args[:1], kwargs

    for module in adapted.modules():
        if marker in module._parameters or marker in module._modules:
            module.register_forward_pre_hook(task_zero, with_kwargs=True)
    return adapted


def _mark_labels(adapted: nn.Module) -> nn.Module:
    """Tell CPT's loss which tokens are labels.

    peft adds the context's greatest type to the types given here, and takes multiples of 4 for labels: that type is 2
    for a text, and the last example's answer, a multiple of 4, otherwise.
    """
    untyped: PeftModel = adapted
    greatest = max(untyped.peft_config["default"].cpt_tokens_type_mask)
    label = 4 - greatest % 4

    import torch

    def mark(_: object, args: object, kwargs: dict[str, Any]) -> tuple[object, dict[str, object]]:
        labels = kwargs.get("labels")
        if labels is not None:
            kwargs["input_type_mask"] = torch.where(labels != -100, label, 1 if label == 2 else 2)
        return args, kwargs

    adapted.register_forward_pre_hook(mark, with_kwargs=True)
    return adapted
