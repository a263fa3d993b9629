from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.digests import slug
from harness.matrix import KEY_CHARACTERS, Axes, Cell, Pattern, Point, expand, make_cell
from tests.harness.test_canonical import JSON, TEXT, shuffled

AXES = ("model", "method", "quantization", "task", "hardware", "common")
IDENTITIES = st.dictionaries(TEXT, JSON, max_size=3)


def point(axis: str, name: str = "a", label: str | None = None, **identity: Any) -> Point:
    return Point(axis, name, label or name, {"name": name, **identity})


def points(**changes: Point) -> list[Point]:
    return [changes.get(axis, point(axis)) for axis in AXES]


def axes(methods: int = 2, tasks: int = 1, seeds: int = 1) -> Axes:
    return Axes(
        models=[point("model", "m")],
        methods=[point("method", f"method-{n}") for n in range(methods)],
        quantization=[point("quantization", "none"), point("quantization", "nf4")],
        tasks=[point("task", f"task-{n}") for n in range(tasks)],
        hardware=[point("hardware", "any", device="cpu")],
        seeds=range(seeds),
        common=Point("common", "common", "common", {"training": {"steps": 10}, "threads": 1}),
    )


# --- keys ----------------------------------------------------------------------------------------
@given(st.fixed_dictionaries(dict.fromkeys(AXES, IDENTITIES)), st.integers(0, 5), st.sampled_from(AXES), TEXT)
def test_key_depends_on_identity_not_label_name_or_key_order(
    identities: dict[str, dict[str, Any]], seed: int, axis: str, text: str
) -> None:
    cell = make_cell([Point(a, a, a, identities[a]) for a in AXES], seed)
    same = make_cell([Point(a, text, text, shuffled(identities[a])) for a in AXES], seed)
    assert same.key == cell.key
    assert len(cell.key) == KEY_CHARACTERS
    other = {**identities, axis: {**identities[axis], "one more": 1}}
    assert make_cell([Point(a, a, a, other[a]) for a in AXES], seed).key != cell.key
    assert make_cell([Point(a, a, a, identities[a]) for a in AXES], seed + 1).key != cell.key


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("before", "after"),
    [({"rank": 8}, {"rank": 9}), ({"a": 1, "b": 2}, {"a": 2, "b": 1}), ({"a": {"b": [1]}}, {"a": {"b": [1, 1]}})],
)
def test_any_change_of_the_identity_changes_the_key(axis: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    keys = {make_cell(points(**{axis: point(axis, **identity)}), 0).key for identity in (before, after)}
    assert len(keys) == 2


def test_the_same_identity_on_another_axis_is_another_cell() -> None:
    one = make_cell(points(model=point("model", "x"), method=point("method", "y")), 0)
    other = make_cell(points(model=point("model", "y"), method=point("method", "x")), 0)
    assert one.key != other.key


def test_a_key_is_the_same_on_every_machine_and_in_every_version() -> None:
    # if this changes, records of earlier versions are no longer found: raise KEY_VERSION and say so
    assert make_cell(points(), 0).key == "ada95ec03bdb6067"


def test_an_identity_that_is_no_plain_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        point("method", rate=float("nan"))


# --- labels and what is stored -------------------------------------------------------------------
def test_a_label_is_readable_and_fit_for_a_file_name() -> None:
    cell = make_cell(points(model=point("model", "meta/Llama 3.2"), method=point("method", "lora", "LoRA r=16")), 3)
    assert cell.label == "meta-Llama-3-2.LoRA-r-16.a.a.a.s3"
    plain = make_cell(points(hardware=point("hardware", "any")), 0)
    assert plain.label == "a.a.a.a.s0"


@given(st.text())
def test_a_slug_is_never_empty_and_holds_safe_characters_only(text: str) -> None:
    made = slug(text)
    assert made
    assert made.isascii()
    assert made.replace("-", "").replace("_", "").isalnum() or set(made) <= {"-", "_"}


def test_a_cell_is_stored_whole() -> None:
    stored = make_cell(points(method=point("method", "lora", "starved", params={"rank": 1})), 2).as_dict()
    assert stored["method"] == {"label": "starved", "name": "lora", "params": {"rank": 1}}
    assert stored["seed"] == 2
    assert set(stored) == {"model", "method", "quantization", "task", "hardware", "name", "seed", "key_version"}


# --- expansion -----------------------------------------------------------------------------------
def test_matrix_order_is_seeds_outer_methods_inner() -> None:
    cells = expand(axes(methods=3, tasks=2, seeds=2)).cells
    assert len(cells) == 3 * 2 * 2 * 2
    assert [c.seed for c in cells] == [0] * 12 + [1] * 12
    assert [c.method.name for c in cells[:4]] == ["method-0", "method-1", "method-2", "method-0"]


def test_the_order_of_the_axes_values_changes_no_key() -> None:
    straight = axes(methods=4, tasks=3, seeds=2)
    mixed = replace(straight, methods=straight.methods[::-1], tasks=straight.tasks[::-1], seeds=[1, 0])
    assert {c.key for c in expand(straight).cells} == {c.key for c in expand(mixed).cells}


def test_a_cell_met_twice_is_kept_once() -> None:
    double = replace(axes(), methods=[point("method", "lora", "one"), point("method", "lora", "other")])
    cells = expand(double).cells
    assert [c.method.label for c in cells] == ["one", "one"]


def test_excluded_cells_stay_with_the_first_matching_reason() -> None:
    rules = [Pattern(method="method-0", quantization="nf*", why="too slow"), Pattern(method="method-*", why="all")]
    matrix = expand(axes(), exclude=rules)
    reasons = {(c.method.name, c.quantization.name): matrix.excluded.get(c.key) for c in matrix.cells}
    assert reasons == {
        ("method-0", "nf4"): "too slow",
        ("method-0", "none"): "all",
        ("method-1", "nf4"): "all",
        ("method-1", "none"): "all",
    }


def test_pattern_matches_names_and_labels_with_every_key() -> None:
    cell = make_cell(points(method=point("method", "lora", "starved")), 1)
    assert Pattern().matches(cell)
    assert Pattern(method="lora").matches(cell)
    assert Pattern(method="star*").matches(cell)
    assert Pattern(method="lora", seed=1).matches(cell)
    assert not Pattern(method="lora", seed=0).matches(cell)
    assert not Pattern(method="lora", task="b").matches(cell)
    assert not Pattern(method="LORA").matches(cell)


def test_further_cells_come_last_once_and_are_not_excluded() -> None:
    inside = expand(axes()).cells[0]
    outside = make_cell(points(), 9)
    matrix = expand(axes(), exclude=[Pattern(why="none of them")], include=[outside, inside, outside])
    assert [c.key for c in matrix.cells[-1:]] == [outside.key]
    assert len(matrix.cells) == 5
    assert {c.key for c in matrix.cells} - set(matrix.excluded) == {inside.key, outside.key}


def test_a_hundred_thousand_cells_expand() -> None:
    cells = expand(axes(methods=50, tasks=100, seeds=10), exclude=[Pattern(method="method-1", why="slow")]).cells
    assert len(cells) == 100_000
    assert len({c.key for c in random.Random(0).sample(cells, 1000)}) == 1000


def test_cells_are_values() -> None:
    one, other = make_cell(points(), 0), make_cell(points(), 0)
    assert one == other
    with pytest.raises(AttributeError):
        one.seed = 1  # type: ignore[misc]
    assert isinstance(one, Cell)


def test_methods_are_resolved_for_a_task_with_own_steps() -> None:
    longer = [replace(m, identity={**m.identity, "steps": 150}) for m in axes().methods]
    cells = expand(replace(axes(tasks=2), methods_by_task={"task-1": longer})).cells
    assert {c.task.label: c.method.identity.get("steps") for c in cells} == {"task-0": None, "task-1": 150}
    unchanged = {c.key for c in expand(axes(tasks=2)).cells if c.task.label == "task-0"}
    assert {c.key for c in cells if c.task.label == "task-0"} == unchanged
