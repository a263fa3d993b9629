from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from harness.errors import UserError
from harness.yamlfile import allowed_keys, line_of, load_model, load_yaml


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = Field(alias="from")
    rows: int | None = Field(default=None, gt=0)


class Kit(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    kind: Literal["small", "large"] = "small"
    rate: float = 0.1
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part] = Field(default_factory=dict)
    spare: Part | None = None
    mixed: Part | int | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "kit.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    """The error message for such a file, without the folder."""
    with pytest.raises(UserError) as caught:
        load_model(write(folder, text), Kit)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_file_becomes_a_value_and_the_lines_of_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "# a kit\nname: x\nparts:\n  - from: a\n    rows: 3\n  - from: b\n")
    kit, lines = load_model(path, Kit)
    assert kit.parts[0].rows == 3
    assert lines[("name",)] == 2
    assert lines[("parts", 0, "rows")] == 5
    assert lines[("parts", 1)] == lines[("parts", 1, "from")] == 6


def test_missing_key_is_reported_at_its_parents_line() -> None:
    lines: dict[tuple[int | str, ...], int] = {("parts",): 3, ("parts", 0): 4}
    assert line_of(lines, ("parts", 0, "rows")) == 4
    assert line_of(lines, ("parts", 7, "rows")) == 3
    assert line_of(lines, ("other",)) == 1


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1E5", 1e5), ("-2e+3", -2e3), (".5", 0.5), ("7", 7.0)])
def test_numbers_with_an_exponent_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    assert load_model(write(tmp_path, f"name: x\nrate: {text}\n"), Kit)[0].rate == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # a key that is not known: at the top, in a list, in a mapping by name, in an optional part, in a union
        (
            "name: x\nprats: []\n",
            "kit.yaml, line 2, key 'prats': unknown key 'prats'. Did you mean 'parts' or 'rate'? "
            "Allowed: by_name, kind, mixed, name, parts, rate, spare.",
        ),
        (
            "name: x\nparts:\n  - from: a\n    row: 3\n",
            "kit.yaml, line 4, key 'parts.0.row': unknown key 'row'. Did you mean 'rows'? Allowed: from, rows.",
        ),
        (
            "name: x\nby_name:\n  one:\n    from: a\n    row: 3\n",
            "kit.yaml, line 5, key 'by_name.one.row': unknown key 'row'. Did you mean 'rows'? Allowed: from, rows.",
        ),
        (
            "name: x\nspare:\n  source: a\n",
            "kit.yaml, line 3, key 'spare.source': unknown key 'source'. Allowed: from, rows.",
        ),
        (
            "name: x\nmixed:\n  from: a\n  row: 3\n",
            "kit.yaml, line 4, key 'mixed.row': unknown key 'row'. Did you mean 'rows'? Allowed: from, rows.",
        ),
        # a misspelt key is reported before the key that is missing because of it
        (
            "nmae: x\n",
            "kit.yaml, line 1, key 'nmae': unknown key 'nmae'. Did you mean 'name'? "
            "Allowed: by_name, kind, mixed, name, parts, rate, spare.",
        ),
        ("rate: 1\n", "kit.yaml, line 1, key 'name': the key 'name' is missing. Add it."),
        (
            "name: x\nparts:\n  - rows: 3\n",
            "kit.yaml, line 3, key 'parts.0': the key 'from' is missing. Add it.",
        ),
        (
            "name: x\nkind: huge\n",
            "kit.yaml, line 2, key 'kind': 'huge' is not allowed here. Allowed: 'small' or 'large'.",
        ),
        (
            "name: x\nparts:\n  - {from: a, rows: 0}\n",
            "kit.yaml, line 3, key 'parts.0.rows': must be greater than 0. Found: 0.",
        ),
        (
            "name: [x]\n",
            "kit.yaml, line 1, key 'name': must be a text. Found: [x].",
        ),
        ("name: x\nparts: 3\n", "kit.yaml, line 2, key 'parts': must be a list, such as [a, b]. Found: 3."),
        ("name: x\nspare: 3\n", "kit.yaml, line 2, key 'spare': must have keys and values. Found: 3."),
        ("name: x\nrate: fast\n", "kit.yaml, line 2, key 'rate': must be a number. Found: 'fast'."),
        (
            "name: x\nrows: 3\n",
            "kit.yaml, line 2, key 'rows': unknown key 'rows'. "
            "It belongs under 'parts' or 'by_name' or 'spare' or 'mixed'.",
        ),
        ("name: {a: [1, null, no]}\n", "kit.yaml, line 1, key 'name': must be a text. Found: {a: [1, null, false]}."),
        ("name: x\nname: y\n", "kit.yaml, line 2: the key 'name' is given twice"),
        ("name: x\nparts:\n  - from: a\n    from: b\n", "kit.yaml, line 4: the key 'from' is given twice"),
        ("- name\n", "kit.yaml: expected keys and values, found a list"),
        ("name\n", "kit.yaml: expected keys and values, found a text"),
        ("", "kit.yaml: the file is empty"),
        ("# nothing\n", "kit.yaml: the file is empty"),
    ],
)
def test_error_names_file_line_key_and_allowed_values(text: str, said: str, tmp_path: Path) -> None:
    assert complaint(tmp_path, text) == said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\n\tkind: small\n", 2),
        ("name: 'x\n", 2),
        ("a: 1\nb: [1\n", 3),
        ("name: !!python/name:os.system x\n", 1),
    ],
)
def test_what_is_not_yaml_is_said_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    assert complaint(tmp_path, text).startswith(f"kit.yaml, line {line}: not valid YAML: ")


@pytest.mark.parametrize("text", ["name: \x00\n", "a: 1\n---\nb: 2\n", "? [a]\n: 1\n"])
def test_other_things_that_are_not_yaml_are_said_too(text: str, tmp_path: Path) -> None:
    assert "not valid YAML: " in complaint(tmp_path, text)


@pytest.mark.parametrize("text", ["name: &a [*a]\n", "name: " + "[" * 5000 + "]" * 5000 + "\n"])
def test_a_file_without_end_is_said(text: str, tmp_path: Path) -> None:
    assert complaint(tmp_path, text) == "kit.yaml: nested too deeply, or an alias that holds itself"


def test_an_alias_may_be_used_twice(tmp_path: Path) -> None:
    kit, _ = load_model(write(tmp_path, "name: x\nspare: &p {from: a}\nparts: [*p, *p]\n"), Kit)
    assert kit.spare == kit.parts[0] == kit.parts[1]


def test_a_file_that_is_not_there_or_not_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.yaml: cannot be read"):
        load_yaml(tmp_path / "binary.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_yaml(tmp_path)


def test_keys_allowed_where_there_are_none() -> None:
    assert allowed_keys(Kit, ("name",)) == []
    assert allowed_keys(Kit, ("no", "such", "place")) == []
    assert allowed_keys(Kit, ("parts", 0)) == allowed_keys(Kit, ("by_name", "any")) == ["from", "rows"]
