"""Settings of a cell as short lines of text, for ``plan`` and ``show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 60
"""Characters after which a parameter's value is cut."""


def method_line(cell: Mapping[str, Any]) -> str:
    """Method with learning rate, steps and parameters, of a cell as it is in a record."""
    method = cell["method"]
    training = cell.get("training", {})
    steps = method.get("steps", training.get("steps"))
    rate = method.get("learning_rate", training.get("learning_rate"))
    parts = [f"learning rate {rate:g}" if rate is not None else "", f"{steps} steps" if steps else ""]
    return ": ".join(filter(None, [method["name"], ", ".join(filter(None, [*parts, _params(method)]))]))


def settings(cell: Mapping[str, Any]) -> dict[str, str]:
    """Short text per axis; the record has the whole cell."""
    model, quantization, task = cell["model"], cell["quantization"], cell["task"]
    training = cell.get("training", {})
    rows = {
        "model": ", ".join(str(part) for part in (model.get("id"), model.get("dtype")) if part),
        "method": method_line(cell),
        "quantization": ", ".join(filter(None, [quantization["name"], _params(quantization)])),
        "task": ", ".join(
            [task["name"], *(f"{task[f'{s}_items']} {s}" for s in ("train", "test") if task.get(f"{s}_items"))]
        ),
        "batch": f"{training['batch_size']} x {training.get('gradient_accumulation', 1)}"
        if training.get("batch_size")
        else "",
        "seed": str(cell.get("seed", "")),
    }
    return {name: text for name, text in rows.items() if text}


def _params(point: Mapping[str, Any]) -> str:
    params = point.get("params") or {}
    return ", ".join(f"{name}={_value(value)}" for name, value in params.items() if value not in (None, False, 0.0))


def _value(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
