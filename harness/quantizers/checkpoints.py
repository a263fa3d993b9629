"""Back ends that quantize a checkpoint on disk: the model is written, quantized with calibration rows, and read again.

What they write is kept in the cache under the digest of everything that makes it (weights, rows, parameters, versions),
because it takes minutes and every adapter on the same base, and the check that reloads it, wants the same one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.digests import digest, digest_file
from harness.errors import Unsupported
from harness.models import conv1d
from harness.models.build_once import made_once
from harness.provenance import SIDE_PACKAGES, packages
from harness.quantizers.base import Quantizer
from harness.quantizers.layers import plain_linears

if TYPE_CHECKING:  # heavy, and only for types
    from torch import Tensor, nn
    from transformers import PreTrainedModel

MADE = "made.json"
"""In a kept checkpoint: the seconds its quantization took when it was made."""
CAUSAL_ONLY = "it quantizes causal language models only"


class CheckpointQuantizer(Quantizer):
    """Subclasses say how a checkpoint is quantized (:meth:`write`) and read (:meth:`reading`)."""

    def __init__(self, params: Mapping[str, object], kind: str, device: str = "cpu") -> None:
        super().__init__(params, kind, device)
        self.rows: list[dict[str, Tensor]] = []
        self._digest = hashlib.sha256()
        self._from_cache = True
        self._made: dict[str, object] = {}

    @classmethod
    def check_model(cls, kind: str, config: Mapping[str, object] | None, params: Mapping[str, object]) -> str | None:
        """Also: requirements on the layers' shapes, as far as the configuration states them."""
        if kind != "causal-lm":
            return f"{cls.declaration.name}: {CAUSAL_ONLY}"
        shapes = decoder_shapes(config) if config is not None else []
        return next((why for rows, columns in shapes if (why := cls.unfit(rows, columns, params))), None)

    @classmethod
    def unfit(cls, rows: int, columns: int, params: Mapping[str, Any]) -> str | None:
        """Reason why a weight of [rows, columns] cannot be quantized at these parameters, or None."""
        size = params["group_size"]
        if columns % size:
            return f"{cls.declaration.name}: groups of {size} do not divide rows of {columns} weights; set group_size"
        return None

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Mapping[str, Any]]]) -> None:
        """Keep the rows of the batches, without their padding, until they are asked for."""
        self.rows, self._digest = [], hashlib.sha256()
        for batch in batches(self.declaration.calibration_batches):
            ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
            for row, real in zip(ids, mask, strict=True):
                kept = row[real].unsqueeze(0)
                self._digest.update(kept.numpy().tobytes())
                self.rows.append({"input_ids": kept, "attention_mask": kept.new_ones(kept.shape)})

    def apply(self, model: nn.Module) -> nn.Module:
        """Write, quantize, read again.

        Raises:
            Unsupported: a layer's shape does not fit, which the configuration did not show.
        """
        import torch

        for name, linear in plain_linears(model):
            why = self.unfit(linear.out_features, linear.in_features, self.params)
            if why is not None:
                raise Unsupported(f"{why} ({name})")
        whole: PreTrainedModel = model
        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory(prefix="peft-matrix-quantize-") as scratch:
            source = Path(scratch) / "source"
            whole.save_pretrained(source, **conv1d.for_saving(model))
            assert self.tokenizer is not None  # the worker has read it by now
            self.tokenizer.save_pretrained(source)  # the libraries look for one, although the rows are tokens already
            folder = (self.cache or Path(scratch)) / "quantized" / f"{self.declaration.name}-{self._key(source)[:16]}"
            made_once(folder, lambda target: self._make(source, target))
            self._made = json.loads((folder / MADE).read_text(encoding="utf-8"))
            loaded = type(whole).from_pretrained(
                folder,
                dtype=whole.dtype,
                attn_implementation=whole.config._attn_implementation,
                use_safetensors=True,
                **({"device_map": {"": 0}} if self.device == "cuda" else {}),
                **self.reading(),
            )
        torch.set_num_threads(threads)  # the libraries set their own
        for (
            parameter
        ) in loaded.parameters():  # unquantized parts stay in the model's dtype, although the libraries prefer another
            parameter.data = parameter.data.to(whole.dtype)
        return cast("nn.Module", loaded.requires_grad_(False))

    def write(self, source: Path, target: Path) -> None:
        """Quantize the checkpoint at ``source`` with :attr:`rows` and write the result into ``target``."""
        raise NotImplementedError

    def reading(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained`` of what :meth:`write` wrote."""
        return {}

    def facts(self) -> dict[str, object]:
        """Calibration data; library; whether the checkpoint came from the cache, and the seconds it took to make it."""
        library = self.declaration.package.replace("_", "-")
        return {
            "library": f"{library} {packages((library,))[library]}",
            "calibration_digest": self._digest.hexdigest(),
            "calibration_batches": self.declaration.calibration_batches,
            "calibration_tokens": sum(row["input_ids"].numel() for row in self.rows),
            "from_cache": self._from_cache,
            **self._made,
        }

    def _key(self, source: Path) -> str:
        return digest(
            {
                "quantizer": self.declaration.name,
                "params": self.params,
                "weights": {f.name: digest_file(f) for f in sorted(source.glob("*.safetensors"))},
                "rows": self._digest.hexdigest(),
                "packages": packages((*SIDE_PACKAGES, "auto-round")),
                "device": self.device,
            }
        )

    def _make(self, source: Path, target: Path) -> None:
        began = time.perf_counter()
        self.write(source, target)
        self._from_cache = False
        made = {"quantization_s": time.perf_counter() - began}
        (target / MADE).write_text(json.dumps(made), encoding="utf-8")


def decoder_shapes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """[rows, columns] of the linear layers of a decoder of Llama's kind; empty where the configuration is another's."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    if any(not isinstance(config.get(name), int) for name in names):
        return []
    hidden, inner, heads = (int(config[name]) for name in names)
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
    return [(queries, hidden), (keys, hidden), (hidden, queries), (inner, hidden), (hidden, inner)]
