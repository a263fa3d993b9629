"""Methods of peft, as data: one row per method. Nothing heavy is imported; peft comes in when a row is attached.

A row's parameters are the fields of its peft configuration class. Three names are the same in all rows: ``alpha``
(``lora_alpha``, …), ``dropout`` (``lora_dropout``, …) and ``init`` (``init_lora_weights``); peft's own spelling is
accepted as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.methods.base import Declaration
from harness.methods.peft.param_counts import Count


@dataclass(frozen=True)
class PeftRow:
    """One method of peft.

    Attributes:
        declaration: what the method promises.
        config: name of its configuration class in peft.
        count: trainable-parameter formula over the targeted layers.
        fixed: configuration fields that make this row what it is; a sweep cannot set them.
        renamed: our parameter name to the configuration's field.
        nested: a configuration field that is itself a configuration, and its class in peft; parameters with the names
            of its fields are passed to it.
        divisors: parameters that may be ``auto``: the largest number up to the given one that divides the sizes
            (``inputs``, ``outputs`` or ``both``) of every targeted layer.
        no_gradient: pattern of parameter names that rightly never get a gradient, and why.
        needs: import name and pip name of a package that peft uses for this row without requiring it.
        variant: class in :mod:`harness.methods.peft.hooks` with the hooks that this row needs, "" for none.
    """

    declaration: Declaration
    config: str
    count: Count
    fixed: Mapping[str, object] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    nested: tuple[str, str] | None = None
    divisors: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    no_gradient: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, str] | None = None
    variant: str = ""
