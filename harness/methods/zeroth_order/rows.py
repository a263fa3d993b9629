"""Common declaration of the zeroth-order methods: one line of arguments per method. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.methods import bases
from harness.methods.base import Declaration

SCOPES = ("full", "lora", "prefix")
EPS = {"full": 1e-3, "lora": 1e-2, "prefix": 1e-1}
"""MeZO's perturbation for each scope (arXiv:2305.17333v3, its grids)."""
RATE = {"full": 1.0, "lora": 50.0, "prefix": 5000.0}
"""Learning rates relative to the scope ``full``, the ratios of MeZO's grids: 1e-6, 5e-5 and 5e-3."""
SOURCE = "the paper's full-parameter setting; its rates are a tenth of full fine-tuning's and below"


def row(
    name: str,
    summary: str,
    paper: str,
    own: Mapping[str, Any] | None = None,
    source: str = SOURCE,
    *,
    lr_factor: float = 0.1,
    no_eps: bool = False,
    later: Mapping[str, Any] | None = None,
) -> Declaration:
    """A declaration in the scope ``full``."""
    return Declaration(
        name=name,
        summary=summary,
        family="zeroth-order",
        trainable="All parameters; with `scope: lora` or `prefix`, those of that method.",
        paper=paper,
        bases=frozenset({"fp"}),
        refuses={
            **bases.because(f"{bases.INTEGER_WEIGHTS} (scope: lora or prefix)", bases.QUANTIZED | bases.DYNAMIC),
            **bases.because(f"{bases.DENSE_AGAIN} (scope: lora or prefix)", "sparse"),
        },
        mergeable="exactly",
        defaults={"scope": "full", **({} if no_eps else {"eps": EPS["full"]}), **(own or {}), "schedule": "sweep"},
        later={**(later or {}), "schedule": "sweep"},
        defaults_source=f"{source}; `schedule: constant` is the paper's, the sweep's is what all rows share",
        lr_factor=lr_factor,
        in_place=True,
    )
