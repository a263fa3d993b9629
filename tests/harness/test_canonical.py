from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.digests import canonical_json, digest, digest_file, digest_text
from harness.errors import CheckFailed, PeftMatrixError, UserError, did_you_mean
from harness.matrix import Axes, Pattern, Point, expand

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    """The same value with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_canonical_json_reads_back_as_the_same_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(JSON)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    assert canonical_json(shuffled(value)) == canonical_json(value)
    assert digest(shuffled(value)) == digest(value)


@given(JSON, JSON)
def test_unlike_values_have_unlike_digests(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (canonical_json(one) == canonical_json(other))


@given(JSON)
def test_canonical_json_has_no_raw_line_break(value: Any) -> None:
    assert "\n" not in canonical_json(value)  # keys of cells are joined with line breaks


def test_the_text_is_fixed() -> None:
    assert canonical_json({"b": [1, 2.0, None], "a": "ü"}) == '{"a":"ü","b":[1,2.0,null]}'
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_what_is_not_a_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_what_json_does_not_know_is_refused() -> None:
    with pytest.raises(TypeError):
        canonical_json({"path": Path("x")})


def test_files_and_texts_with_equal_bytes_have_equal_digests(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("ü" * 100_000, encoding="utf-8")
    assert digest_file(tmp_path / "x") == digest_text("ü" * 100_000)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("no such file"), "no such file"),
        (UserError("no such file", where="a.yaml"), "a.yaml: no such file"),
        (UserError("no such file.", fix="Create it."), "no such file. Create it."),
        (
            UserError("unknown key 'x'", where="a.yaml, line 3", fix="Add it."),
            "a.yaml, line 3: unknown key 'x'. Add it.",
        ),
    ],
)
def test_a_user_error_says_what_where_and_what_to_do(error: UserError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("error", [UserError("what", where="where", fix="Fix."), CheckFailed("reload", "1 is not 2")])
def test_errors_cross_process_borders_whole(error: PeftMatrixError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_did_you_mean_names_the_close_ones_first_and_then_all() -> None:
    assert did_you_mean("lroa", ["lora", "full"]) == "Did you mean 'lora'? Allowed: full, lora."
    assert did_you_mean("xyz", ["lora", "full"]) == "Allowed: full, lora."
    assert did_you_mean("xyz", []) == "This mapping takes no keys."


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
