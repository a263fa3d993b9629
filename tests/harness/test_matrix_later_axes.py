"""Axes that came after records were made: their default is in no key, every other value is a separate cell."""

from __future__ import annotations

from typing import Any

from harness.matrix import Axes, Pattern, Point, expand


def point(axis: str, name: str, **identity: Any) -> Point:
    return Point(axis, name, name, {"name": name, **identity})


DPO = point("objective", "dpo", params={"beta": 0.1}, lr_factor=0.1)
CURRICULUM = point("recipe", "curriculum", params={})


def axes(**later: Any) -> Axes:
    return Axes(
        models=[point("model", "m")],
        methods=[point("method", "none", learning_rate=None), point("method", "lora", learning_rate=2e-4)],
        quantization=[point("quantization", "none")],
        tasks=[point("task", "t")],
        hardware=[point("hardware", "any")],
        seeds=[0],
        common=point("common", "c"),
        later=later,
        untrained=frozenset({"none"}),
    )


def test_the_default_is_in_no_key() -> None:
    before = [cell.key for cell in expand(axes()).cells]
    after = [cell.key for cell in expand(axes(objective=[None], recipe=[None])).cells]
    assert before == after


def test_every_other_value_is_a_separate_cell() -> None:
    cells = expand(axes(objective=[None, DPO], recipe=[None, CURRICULUM])).cells
    assert [cell.label for cell in cells] == [
        "m.none.none.t.s0",
        "m.lora.none.t.s0",
        "m.lora-curriculum.none.t.s0",
        "m.lora-dpo.none.t.s0",
        "m.lora-dpo-curriculum.none.t.s0",
    ], "a method that does not train has no objective"
    assert len({cell.key for cell in cells}) == 5


def test_an_objective_scales_the_method_s_rate() -> None:
    plain, dpo = expand(axes(objective=[None, DPO])).cells[1:]
    assert plain.method.identity["learning_rate"] == 2e-4
    assert dpo.method.identity["learning_rate"] == 2e-5
    stored = dpo.as_dict()
    assert stored["method"]["label"] == "lora+dpo"
    assert stored["objective"] == {"label": "dpo", **DPO.identity}
    assert "objective" not in plain.as_dict()


def test_rules_match_the_default_by_its_name() -> None:
    cells = expand(axes(objective=[None, DPO]))
    sft = [c.label for c in cells.cells if Pattern(later={"objective": "sft"}).matches(c)]
    dpo = [c.label for c in cells.cells if Pattern(method="lora", later={"objective": "d*"}).matches(c)]
    assert sft == ["m.none.none.t.s0", "m.lora.none.t.s0"]
    assert dpo == ["m.lora-dpo.none.t.s0"]
