from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.digests import canonical_json, digest, digest_file, digest_text

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
