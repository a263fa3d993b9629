"""YAML files read with positions, so that every complaint names file, line, key, and what is allowed there."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from harness.bounded import read_text
from harness.digests import without_later
from harness.errors import UserError, did_you_mean, kind_of, requirement, shown

M = TypeVar("M", bound=BaseModel)
Loc = tuple[int | str, ...]


MAX_BYTES = 4 * 2**20
MAX_NODES = 200_000
"""Values of a file with every alias written out; the largest sweep of the library has a few thousand."""
MAX_DEPTH = 40
MAX_DIGITS = 30
"""Digits of a whole number; 64 bits have 19."""


_NUMBERS = (int, float, int | None, float | None)


@dataclass(frozen=True)
class Later:
    """Marks a field that was added after records were made: ``merged: Annotated[bool, Later()] = True``.

    At its default it is not written (:func:`harness.digests.without_later`), so that the cells of those records keep
    their keys.
    """


@cache
def later_fields(model: type[BaseModel]) -> dict[str, object]:
    """Fields of ``model`` that are marked :class:`Later`, with their defaults."""
    marked = {name: f for name, f in model.model_fields.items() if any(isinstance(m, Later) for m in f.metadata)}
    return {name: field.get_default(call_default_factory=True) for name, field in marked.items()}


class FileModel(BaseModel):
    """Base of what a YAML file holds: immutable, unknown keys are errors, later fields at their default not written."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object) -> object:
        """``steps: true`` is a slip of the pen, although Python counts ``True`` as 1."""
        if isinstance(value, dict):
            for name, field in cls.model_fields.items():
                if isinstance(value.get(name), bool) and field.annotation in _NUMBERS:
                    raise ValueError(f"{name!r} is a number, not {str(value[name]).lower()}")
        return value

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, Any] = write(self)
        kept = without_later(dict(self), later_fields(type(self)))
        return {name: value for name, value in content.items() if name in kept}


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that also reads ``3e-4`` as a number (YAML 1.1 asks for ``3.0e-4``) and refuses double keys."""


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Name to file of every ``<name>.yaml``; of two with one name, the one in the earlier folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def load_yaml(path: Path) -> tuple[Any, dict[Loc, int]]:
    """Plain data of a YAML file and the line (from 1) of every key and item, by its location.

    Raises:
        UserError: no such file, not YAML, or a key given twice.
    """
    try:
        text = read_text(path, most=MAX_BYTES)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    lines: dict[Loc, int] = {}
    try:
        loader = _StrictLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                raise UserError("the file is empty", where=str(path))
            _check_size(root, path)
            _mark(root, (), lines, path)
            return loader.construct_document(root), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=f"{path}{line}") from error
    except RecursionError:
        raise UserError("nested too deeply, or an alias that holds itself", where=str(path)) from None


def _check_size(root: yaml.Node, path: Path) -> None:
    """Refuse a file that is small only because its aliases are not written out, before they are.

    Raises:
        UserError: too many values, too deep, or a number of thousands of digits.
    """
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        where = f"{path}, line {node.start_mark.line + 1}"
        if id(node) in open_:
            raise UserError("nested too deeply, or an alias that holds itself", where=str(path))
        if depth > MAX_DEPTH:
            raise UserError(f"nested more than {MAX_DEPTH} deep", where=where)
        if id(node) not in sizes:
            open_.add(id(node))
            if isinstance(node, yaml.MappingNode):
                inside = [n for pair in node.value for n in pair]
            else:
                inside = list(node.value) if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.ScalarNode):
                _check_scalar(node, where)
            found = 1
            for one in inside:
                found += size(one, depth + 1)
                if found > MAX_NODES:
                    raise UserError(f"more than {MAX_NODES:,} values, its aliases written out", where=where)
            sizes[id(node)] = found
            open_.discard(id(node))
        return sizes[id(node)]

    size(root, 0)


def _check_scalar(node: yaml.ScalarNode, where: str) -> None:
    if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
        raise UserError(f"a number of {len(node.value):,} digits", where=where, fix="Write a smaller one.")
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise UserError("a text holds half of a character (a lone surrogate)", where=where) from None


def _mark(node: yaml.Node, at: Loc, lines: dict[Loc, int], path: Path) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            if here in lines:
                raise UserError(
                    f"the key {key.value!r} is given twice", where=f"{path}, line {key.start_mark.line + 1}"
                )
            lines[here] = key.start_mark.line + 1
            _mark(value, here, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, (*at, index), lines, path)


def load_model(path: Path, model: type[M], changes: Iterable[str] = ()) -> tuple[M, dict[Loc, int]]:
    """A YAML file as an instance of ``model``, with the positions of its keys.

    Args:
        changes: values to set before it is checked (:func:`override`).

    Raises:
        UserError: the first thing that is wrong, with file, line, key and what is allowed.
    """
    data, lines = load_yaml(path)
    override(data, changes)
    return validate(data, model, path=path, lines=lines), lines


def override(data: object, changes: Iterable[str]) -> None:
    """Set values of a file's plain data, in place: ``training.steps=10``, ``methods.0.params.r=16``.

    The value is YAML. Mappings that the file lacks are made; a list is not made longer.

    Raises:
        UserError: not ``KEY=VALUE``, the value is not YAML, or the key leads through a value that has no keys.
    """
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key:
            raise UserError(f"{change!r} is not KEY=VALUE", where="-o", fix="For example: -o training.steps=10")
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise UserError(f"the value {text!r} is not YAML", where=f"-o {key}") from error
        at, last = data, key.split(".")[-1]
        for part in key.split(".")[:-1]:
            at = _step_into(at, part, key)
        if isinstance(at, list) and last.isdigit() and int(last) < len(at):
            at[int(last)] = value
        elif isinstance(at, dict):
            at[last] = value
        else:
            raise UserError(f"there is nothing to set at {last!r}", where=f"-o {key}", fix="Name a key of the file.")


def _step_into(at: object, part: str, key: str) -> object:
    if isinstance(at, dict):
        return at.setdefault(part, {})
    if isinstance(at, list) and part.isdigit() and int(part) < len(at):
        if isinstance(at[int(part)], str):
            raise UserError(
                f"{at[int(part)]!r} is a name without keys", where=f"-o {key}", fix="Write it out in the file."
            )
        return at[int(part)]
    raise UserError(f"there is no {part!r} here", where=f"-o {key}", fix="Name a key of the file.")


def validate(data: object, model: type[M], *, path: Path | None = None, lines: dict[Loc, int] | None = None) -> M:
    """``data`` as an instance of ``model``.

    Args:
        path: the file that ``data`` was read from, with ``lines``; None: it was built in Python.

    Raises:
        UserError: the first thing that is wrong, with file, line, key and what is allowed.
    """
    if not isinstance(data, dict):
        raise UserError(f"expected keys and values, found {kind_of(data)}", where=str(path or ""))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
        raise _explain(dict(first), model, path, lines or {}) from None


def line_of(lines: dict[Loc, int], loc: Loc) -> int:
    """Line of ``loc``, or of the nearest enclosing key that the file holds."""
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc, 1)


def _explain(error: dict[str, Any], model: type[BaseModel], path: Path | None, lines: dict[Loc, int]) -> UserError:
    raw: Loc = tuple(error["loc"])
    loc = _in_file(raw, lines) or raw
    key = ".".join(str(part) for part in loc)
    where = f"{path}, line {line_of(lines, loc)}, key '{key}'" if path is not None else f"key '{key}'"
    kind, found = error["type"], shown(error.get("input"))
    if kind == "extra_forbidden":
        name, allowed = str(raw[-1]), allowed_keys(model, loc[:-1])
        homes = [] if name in allowed else keys_with(model, name)
        fix = f"It belongs under {' or '.join(repr(home) for home in homes)}." if homes else did_you_mean(name, allowed)
        return UserError(f"unknown key {name!r}", where=where, fix=fix)
    if kind == "missing":
        return UserError(f"the key {str(raw[-1])!r} is missing", where=where, fix="Add it.")
    if kind == "literal_error":
        return UserError(f"{found} is not allowed here", where=where, fix=f"Allowed: {error['ctx']['expected']}.")
    return UserError(requirement(error), where=where, fix="" if kind == "value_error" else f"Found: {found}.")


def keys_with(model: type[BaseModel], name: str) -> list[str]:
    """Keys of ``model`` whose mapping or list of mappings has a key ``name``."""
    inner = {key: _model_in(annotation) for key, annotation in _fields(model).items()}
    return [key for key, found in inner.items() if found is not None and name in _fields(found)]


def _in_file(raw: Loc, lines: dict[Loc, int]) -> Loc:
    """``raw`` without the parts that pydantic added (names of union members) or that the file leaves out."""
    loc: Loc = ()
    for part in raw:
        if (*loc, part) in lines:
            loc = (*loc, part)
    return loc


def allowed_keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """Keys that are allowed at ``loc`` inside a document of type ``model``."""
    current: object = model
    for part in loc:
        current = _inside(current, part)
    found = _model_in(current)
    return sorted(_fields(found)) if found is not None else []


def _fields(model: type[BaseModel]) -> dict[str, object]:
    """Annotations by the key in the file (the alias, where a field has one)."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _inside(annotation: Any, part: int | str) -> object:
    """The annotation of what ``part`` (a key or an index) leads to, None if it leads nowhere."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return _fields(annotation).get(str(part)) if _is_model(annotation) else None
    origin = typing.get_origin(annotation)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return arguments[1]
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return arguments[0] if isinstance(part, int) else None
    return next((found for found in (_inside(a, part) for a in arguments) if found is not None), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model inside a (possibly nested) type annotation."""
    if not typing.get_args(annotation):
        return annotation if _is_model(annotation) else None
    return next((found for found in map(_model_in, typing.get_args(annotation)) if found is not None), None)


def _is_model(annotation: object) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)
