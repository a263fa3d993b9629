"""AutoRound: roundings and clipping learned by signed gradient descent, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from harness.quantizers.base import QuantizerDeclaration
from harness.quantizers.checkpoints import CheckpointQuantizer
from harness.quantizers.layers import one_of, positive

NO_ADAPTERS = "peft does not wrap AutoRound's layers (target module QuantLinear is not supported)"


class AutoRound(CheckpointQuantizer):
    """Each weight's rounding is moved by at most half a step, so that the block's outputs on the rows come nearest.

    Source: Cheng et al. 2023, arXiv:2309.05516, equations 3 to 5.
    """

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="autoround",
        summary="AutoRound: roundings learned by signed gradient descent on calibration data; also on a CPU, slowly.",
        base="autoround",
        bits=4,
        moments=frozenset({"before_training", "after_merge"}),
        package="auto_round",
        pip="auto-round==0.16.1",
        defaults={"bits": 4, "group_size": 128, "symmetric": True, "iterations": 200},
        source="arXiv:2309.05516; auto-round's defaults",
        no_gradient=NO_ADAPTERS,
        refuses_merge="peft does not wrap AutoRound's layers",
        calibration_batches=4,
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("bits", resolved["bits"], (2, 3, 4, 8), where)
        one_of("symmetric", resolved["symmetric"], (True, False), where)
        positive("group_size", resolved["group_size"], where)
        positive("iterations", resolved["iterations"], where)
        return resolved

    def write(self, source: Path, target: Path) -> None:
        """See :class:`CheckpointQuantizer`. The library takes rows of one length, so they are cut to the shortest."""
        from auto_round import AutoRound as Library
        from transformers import AutoModelForCausalLM

        length = min(row["input_ids"].shape[1] for row in self.rows)
        rows = [{name: tensor[:, :length] for name, tensor in row.items()} for row in self.rows]
        p = self.params
        model = AutoModelForCausalLM.from_pretrained(source)
        work = Library(
            model,
            self.tokenizer,
            bits=p["bits"],
            group_size=p["group_size"],
            sym=p["symmetric"],
            iters=p["iterations"],
            seqlen=length,
            nsamples=len(rows),
            dataset=rows,
            device_map=self.device,
        )
        work.quantize_and_save(str(target / "written"), format="auto_round")
        (inner,) = [found.parent for found in (target / "written").rglob("config.json")]  # it adds its own folder
        for file in inner.iterdir():
            file.rename(target / file.name)
