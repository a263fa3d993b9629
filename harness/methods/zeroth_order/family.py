"""Sparse MeZO (arXiv:2402.15751) and the family of ZO-Bench (2402.11592): other directions, slopes and updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration
from harness.methods.modules import trainable
from harness.methods.zeroth_order.mezo import Mezo, ZerothOrderStep, by_block, row

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

    from harness.methods.zeroth_order.directions import Mask


# --- which entries move -----------------------------------------------------------------------------
class SparseMezo(Mezo):
    """z is zeroed where |theta| is above its tensor's threshold, a quantile taken before the first step."""

    declaration: ClassVar[Declaration] = row(
        "sparse-mezo",
        "MeZO on the smallest weights of each tensor only, on which the noise of the estimate does least harm.",
        "2402.15751v2",
        {"share": 0.25, "directions": 1},
        "a quarter of the weights, the middle of the paper's sparsities; its rates are several times MeZO's",
        lr_factor=0.3,
        later={"directions": 1},
    )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """As MeZO; the thresholds are taken now."""
        made = super().optimizer(model)
        share = float(self.params["share"])
        self._thresholds = [_quantile(p.detach(), share) for p in model.parameters() if p.requires_grad]
        return made

    def mask(self, trained: list[nn.Parameter], seed: int) -> Mask:
        """|theta| <= h, of theta before it is shifted: a bit a weight while the step lasts.

        From the shifted weights the mask could not be taken again exactly.
        """
        from harness.methods.zeroth_order.directions import bits, unpacked

        small = [bits(p.detach().abs() <= h) for p, h in zip(trained, self._thresholds, strict=True)]
        self._mask_bytes = sum(packed.numel() for packed in small)
        return lambda index, z: z * unpacked(small[index], z.shape)


def _quantile(weight: torch.Tensor, share: float) -> torch.Tensor:
    """The ``share``-quantile of the magnitudes; :func:`torch.quantile` refuses large tensors."""
    magnitudes = weight.float().abs().flatten()
    return magnitudes.kthvalue(max(1, round(share * magnitudes.numel()))).values


class ZoSparse(Mezo):
    """z is zeroed in a random share of its entries, drawn again at every step from the step's seed."""

    declaration: ClassVar[Declaration] = row(
        "zo-sparse",
        "MeZO along directions most of whose entries are zero, others at every step.",
        "2402.11592v3",
        {"sparsity": 0.9},
        "sparsity 0.9 as in ZO-Bench; rates as MeZO's",
    )

    def mask(self, trained: list[nn.Parameter], seed: int) -> Mask:
        """A share of 1 - ``sparsity`` stays, the same entries in every shift of the step; nothing is stored."""
        import torch

        sparsity = float(self.params["sparsity"])

        def masked(index: int, z: torch.Tensor) -> torch.Tensor:
            generator = torch.Generator(z.device).manual_seed(seed * 65_537 + index)
            return z * (torch.rand(z.shape, generator=generator, device=z.device) >= sparsity)

        return masked


# --- how they move ----------------------------------------------------------------------------------
class ZoSign(Mezo):
    """Every entry moves by the learning rate against the sign of rho z; ``mode: repo`` moves by sign(rho) z."""

    declaration: ClassVar[Declaration] = row(
        "zo-sign",
        "MeZO's direction, but each weight moves by the same amount: only the estimate's sign counts.",
        "2402.11592v3",
        {"mode": "paper"},
        "three times MeZO's rates, ours: as long a step where the slope is about 3",
        lr_factor=0.3,
    )

    def update(self, step: ZerothOrderStep, rho: float) -> None:
        """theta <- (1 - lr wd) theta - lr sign(rho) sign(z)."""
        from harness.methods.zeroth_order.directions import shift

        sign = (rho > 0) - (rho < 0)
        turned: Mask | None = None if self.params["mode"] == "repo" else lambda _, z: z.sign()
        shift(step.part, step.seed, -step.rate * sign, scale=self.decay(step.rate), mask=turned)


class ZoMomentum(Mezo):
    """theta follows a moving mean of rho z: one state a weight."""

    declaration: ClassVar[Declaration] = row(
        "zo-momentum",
        "MeZO with momentum: the estimates of many steps are averaged, at the price of one state a weight.",
        "2402.11592v3",
        {"momentum": 0.9},
        "momentum 0.9 as in ZO-Bench, of a mean, so that rates stay MeZO's",
    )

    def update(self, step: ZerothOrderStep, rho: float) -> None:
        """M <- beta m + (1 - beta) rho z; theta <- (1 - lr wd) theta - lr m."""
        import torch

        from harness.methods.zeroth_order.directions import directions

        beta = float(self.params["momentum"])
        for parameter, z in zip(step.part, directions(step.part, step.seed), strict=True):
            state = self._optimizer.state[parameter]
            mean = state.setdefault("momentum", torch.zeros_like(z)).lerp_(rho * z, 1 - beta)
            decayed = parameter.data.float().mul_(self.decay(step.rate))
            parameter.data.copy_(decayed.add_(mean, alpha=-step.rate))


class ZoAdam(Mezo):
    """AdamW is fed rho z in the gradient's place: two states a weight."""

    declaration: ClassVar[Declaration] = row(
        "zo-adam",
        "AdamW on MeZO's estimates: adaptive steps, but optimizer state as large as full fine-tuning's.",
        "2402.11592v3",
        None,
        "betas of the protocol; three times MeZO's rates, ours: as long a step where the slope is about 3",
        lr_factor=0.3,
    )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, stepped here; when the loop steps it there are no gradients, and it does nothing."""
        import torch

        super().optimizer(model)
        self._optimizer = torch.optim.AdamW(trainable(model), **self.setting.adamw)
        return self._optimizer

    def update(self, step: ZerothOrderStep, rho: float) -> None:
        """AdamW's step on rho z; the estimate is dropped afterwards, so that the loop finds no gradient."""
        from harness.methods.zeroth_order.directions import directions

        for parameter, z in zip(step.part, directions(step.part, step.seed), strict=True):
            parameter.grad = (rho * z).to(parameter.dtype)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class ZoConservative(Mezo):
    """Of theta, theta - lr rho z and theta + lr rho z the one with the lowest loss on the batch is kept."""

    declaration: ClassVar[Declaration] = row(
        "zo-conservative",
        "MeZO that looks before it steps: of staying, stepping and stepping back it keeps what has the lowest loss.",
        "2402.11592v3",
        None,
        "rates as MeZO's; three additional forward passes per step",
    )

    def expects_change(self, name: str) -> bool:
        """It may stay where it is for a whole run."""
        return False

    def update(self, step: ZerothOrderStep, rho: float) -> None:
        """Decay, then the best of the three."""
        from harness.methods.zeroth_order.directions import shift

        shift(step.part, step.seed, 0.0, scale=self.decay(step.rate))
        losses = {0.0: float(self.task_loss(step.model, step.batch))}
        at = 0.0
        for factor in (-1.0, 1.0):
            shift(step.part, step.seed, (factor - at) * step.rate * rho)
            losses[factor] = float(self.task_loss(step.model, step.batch))
            at = factor
        best = min(losses, key=lambda factor: losses[factor])
        shift(step.part, step.seed, (best - at) * step.rate * rho)


# --- how the slope is found, and where --------------------------------------------------------------
class ZoForwardGradient(Mezo):
    """rho is the exact derivative along z, by forward-mode differentiation in one pass."""

    declaration: ClassVar[Declaration] = row(
        "zo-forward-grad",
        "The loss's exact derivative along one random direction, carried through a single forward pass.",
        "2402.11592v3",
        None,
        "rates as MeZO's; no eps, as nothing is shifted",
        no_eps=True,
    )

    @classmethod
    def declared(cls, params: Mapping[str, object]) -> Declaration:
        """Quantized layers know backward differentiation only, or none."""
        d = super().declared(params)
        refused = bases.because(NO_FORWARD_MODE, bases.QUANTIZED | bases.DYNAMIC)
        return replace(d, bases=d.bases - refused.keys(), refuses={**refused, **d.refuses})

    def slope(self, step: ZerothOrderStep) -> tuple[float, torch.Tensor]:
        """Jacobian-vector product of the loss with z; all of z is in memory at once."""
        from torch.autograd import forward_ad
        from torch.func import functional_call
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from harness.methods.zeroth_order.directions import directions

        names = {id(p): n for n, p in step.model.named_parameters()}
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
            tangents = zip(step.part, directions(step.part, step.seed), strict=True)
            make: Any = forward_ad.make_dual  # torch has no types here
            dual = {names[id(p)]: make(p.detach(), z.to(p.dtype)) for p, z in tangents}
            outputs = functional_call(step.model, dual, args=(), kwargs=dict(step.batch))
            apart: Any = forward_ad.unpack_dual
            loss, slope = apart(self.carrier.loss(outputs, step.batch, outputs.loss))
        found: torch.Tensor = loss.detach()
        return float(slope), found


NO_FORWARD_MODE = "its layers have no forward-mode derivative; see the other estimators, which need none"


class ZoBlockwise(Mezo):
    """Two passes a block: each block, and what is outside of them, is estimated and moved by itself."""

    declaration: ClassVar[Declaration] = row(
        "zo-blockwise",
        "MeZO one block after the other: less noise a step, at two forward passes a block.",
        "2402.11592v3",
        None,
        "rates as MeZO's",
    )

    @classmethod
    def refused_scopes(cls) -> dict[str, str]:
        """A prefix belongs to no block."""
        return {"prefix": "a prefix is one tensor outside the blocks; it has no parts to take in turn"}

    def descend(self, model: nn.Module, batch: Batch, seed: int, rate: float) -> torch.Tensor:
        """All parts in turn, each with a separate direction; returns the last part's loss."""
        parts = by_block(model)
        for index, part in enumerate(parts):
            step = ZerothOrderStep(model, batch, part, seed * len(parts) + index, rate)
            rho, loss = self.slope(step)
            self.update(step, rho)
        return loss


class ZoHybrid(Mezo):
    """Zeroth order below, first order in the last blocks and the head: the backward pass ends there."""

    declaration: ClassVar[Declaration] = row(
        "zo-hybrid",
        "MeZO in the lower blocks, AdamW with true gradients in the last, to which the backward pass is confined.",
        "2402.11592v3",
        {"last": 1, "first_order_ratio": 10.0},
        "one block by gradients; its rate ten times MeZO's, which is full fine-tuning's",
    )

    @classmethod
    def refused_scopes(cls) -> dict[str, str]:
        """A prefix belongs to no block."""
        return {"prefix": "a prefix is one tensor outside the blocks; it has no last part"}

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW for the last blocks' parameters; the loop steps it."""
        import torch

        s = self.setting
        super().optimizer(model)
        *_, inside = by_block(model, last=int(self.params["last"]))
        self._upper = {id(p) for p in inside}
        self._upper_names = {n for n, p in model.named_parameters() if id(p) in self._upper}
        rate = s.learning_rate * float(self.params["first_order_ratio"])
        self._optimizer = torch.optim.AdamW(inside, lr=rate, betas=s.betas, weight_decay=s.weight_decay)
        return self._optimizer

    def expects_gradient(self, name: str) -> bool:
        """Of the upper part's parameters, once the optimizer is there."""
        return name in getattr(self, "_upper_names", ())

    def descend(self, model: nn.Module, batch: Batch, seed: int, rate: float) -> torch.Tensor:
        """The upper part's gradient and the lower part's slope at the same point; then the lower part moves."""
        import torch

        trained = trainable(model)
        lower = [p for p in trained if id(p) not in self._upper]
        for parameter in lower:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            loss = self.task_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        for parameter in lower:
            parameter.requires_grad_(True)
        step = ZerothOrderStep(model, batch, lower, seed, rate / float(self.params["first_order_ratio"]))
        rho, _ = self.slope(step)
        self.update(step, rho)
        return loss.detach()
