"""From a task's definition to its items, and to the digest of everything that can change one.

Rows come from files or the Hub (:mod:`tasks.rows`), or from a generator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from harness.digests import canonical_json, digest
from harness.errors import UserError, shown
from tasks import formats, preferences
from tasks.generators import GENERATORS
from tasks.parsers import PARSER_VERSIONS, PARSERS
from tasks.rows import DATA_ROOT_HINT, FileOrigin, HubOrigin, Row, SplitRows
from tasks.task import (
    COMPLETION,
    SPLITS,
    ChoicesInText,
    Item,
    Source,
    SplitName,
    SplitRule,
    Task,
    TaskDefinition,
)
from tasks.template import FieldError, lookup, render

OTHER_WAYS = ("options", "prompts", "raw")
"""Fields of a definition that say how items may be asked again: part of a cell only where its sweep does so."""


def load_split(task: Task, split: SplitName, *, data_root: Path | None, max_items: int | None, seed: int) -> list[Item]:
    """The items of a split, in the order of their source.

    Args:
        task: where items come from and what they look like.
        split: one that the task has.
        data_root: folder whose ``<name>/<split>.jsonl`` overrides the Hub.
        max_items: at most so many; which ones is drawn by ``seed``, and fewer are a subset of more.
        seed: concerns the train split only. Validation and test items are the same for every seed, so that the
            items of two cells can be paired.

    Raises:
        UserError: a file, column, label or template field is missing or wrong, or there are no rows; one sentence.
    """
    definition = task.definition
    rule = _rule(task, split)
    seed = seed if split == "train" else 0
    source = rule.source or definition.source
    if source.generator:
        n = min(rule.max_rows or 0, max_items or rule.max_rows or 0)
        return GENERATORS.get(source.generator)(source.params, rule.from_, n, seed)
    origin = _locate(task, source, rule, data_root)
    rows = origin.read()
    indices = _choose(task, split, _kept(definition, rows))
    if not indices:
        raise UserError(
            f"the {split} split of task {definition.name!r} is empty",
            where=str(origin.path) if isinstance(origin, FileOrigin) else origin.hub.id,
            fix="Add rows, or correct the split's rule.",
        )
    if split == "train" and definition.train_answer:
        definition = definition.model_copy(update={"answer": definition.train_answer})
    items = []
    for index in _sample(indices, max_items, f"items/{seed}"):
        row, where = rows[index], rows.where(index)
        item = formats.asked(task, _item(definition, f"{rule.from_}/{index}", row, where), row, where)
        items.append(_judged(definition, item, row, where) if split == "test" else item)
    if split == "test":
        _check_answers(definition, items)
    return items


def count_items(task: Task, split: SplitName, *, data_root: Path | None, max_items: int | None) -> int:
    """How many items :func:`load_split` gives.

    Raises:
        UserError: as there.
    """
    rule = _rule(task, split)
    source = rule.source or task.definition.source
    if source.generator:
        n = rule.max_rows or 0
    else:
        rows = _locate(task, source, rule, data_root).read()
        n = len(_choose(task, split, _kept(task.definition, rows)))
    return n if max_items is None else min(n, max_items)


def task_digest(task: Task, *, data_root: Path | None) -> str:
    """Digest of everything that can change an item or its score.

    The definition without its words for people, and for each split the bytes of its file; or the Hub's id,
    configuration and revision; or the items themselves where a program makes them (a generator may then be
    rewritten without making a record stale, as long as it makes the same items).

    Raises:
        UserError: a source file is missing.
    """
    definition = task.definition
    words = {"summary", "licence", "citation", "notes", "source", *OTHER_WAYS}
    said = definition.model_dump(mode="json", exclude=words | {"splits"})
    rules = {name: rule.model_dump(mode="json", exclude={"source"}) for name, rule in definition.splits.items()}
    rows = {name: _identity(task, rule, data_root) for name, rule in definition.splits.items()}
    return digest({"definition": said, "splits": rules, "rows": rows, **_code(definition)})


def _code(definition: TaskDefinition) -> dict[str, object]:
    """Digests of the code of a parser or generator from outside this project, and the version of a parser that changed
    since records were made; nothing for the others of this project."""
    used = {"parser": PARSERS.code(definition.parser) if definition.judges_completions else None}
    if definition.source.generator:
        used["generator"] = GENERATORS.code(definition.source.generator)
    found: dict[str, Any] = {f"code:{name}": code for name, code in used.items() if code is not None}
    if definition.judges_completions and definition.kind == "generation" and definition.parser in PARSER_VERSIONS:
        found["parser_version"] = PARSER_VERSIONS[definition.parser]
    return found


def in_file(task: Task, split: SplitName, *, data_root: Path | None) -> bool:
    """True if the rows of a split come from a file on this machine (and not from a generator or the Hub).

    Raises:
        UserError: a file that the task names is missing.
    """
    rule = _rule(task, split)
    source = rule.source or task.definition.source
    return not source.generator and isinstance(_locate(task, source, rule, data_root), FileOrigin)


def unpinned(task: Task, *, data_root: Path | None, splits: Sequence[SplitName] = SPLITS) -> dict[str, str]:
    """Hub data sets that ``splits`` would be read from here and that no commit holds still: id to the reason.

    Raises:
        UserError: a file that the task names is missing.
    """
    found: dict[str, str] = {}
    for name, rule in task.definition.splits.items():
        source = rule.source or task.definition.source
        if source.generator is None and name in splits:
            origin = _locate(task, source, rule, data_root)
            if isinstance(origin, HubOrigin) and not origin.hub.pinned:
                found[origin.hub.id] = origin.hub.unpinned or "its revision is no commit"
    return found


def contamination(train: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """Ids of the test items whose prompt is also in ``train``, ignoring white space and case."""
    seen = {_normal(item.prompt) for item in train}
    return [item.id for item in test if _normal(item.prompt) in seen]


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _rule(task: Task, split: SplitName) -> SplitRule:
    rule = task.definition.splits.get(split)
    if rule is None:
        has = ", ".join(task.definition.splits)
        raise UserError(f"task {task.definition.name!r} has no {split} split; it has {has}", where=str(task.path))
    return rule


def _locate(task: Task, source: Source, rule: SplitRule, data_root: Path | None) -> FileOrigin | HubOrigin:
    """Source of a rule's rows: a file of the task, a data root, the Hub; the first that exists."""
    split, name = rule.from_, task.definition.name
    if split in source.files:
        path = task.path.parent / source.files[split]
        if not path.is_file():
            raise UserError(
                f"task {name!r} reads {path}, which does not exist",
                where=f"{task.path}, key 'source.files.{split}'",
                fix="Paths are relative to the task's file.",
            )
        return FileOrigin(path, source.columns)
    if data_root is not None and not data_root.is_dir():
        raise UserError(f"the data root {data_root} is not a folder", fix="Correct --data-root or PEFT_MATRIX_DATA.")
    if source.data_root and data_root is not None:
        path = data_root / source.data_root / f"{split}.jsonl"
        if path.is_file():
            return FileOrigin(path, source.columns)
    if source.hub:
        instead = f"{source.data_root or name}/{split}.jsonl"
        return HubOrigin(source.hub, source.hub.splits.get(split, split), instead)
    if source.data_root:
        raise UserError(
            f"task {name!r} finds no {source.data_root}/{split}.jsonl in {data_root or 'any data root'}",
            fix=DATA_ROOT_HINT.format(f"{source.data_root}/{split}.jsonl"),
        )
    raise UserError(
        f"task {name!r} has no file for the source split {split!r}; it has {', '.join(source.files)}",
        where=str(task.path),
    )


def _identity(task: Task, rule: SplitRule, data_root: Path | None) -> dict[str, object]:
    source = rule.source or task.definition.source
    if source.generator:
        return {"items": _digest_generated(source.generator, canonical_json(source.params), rule.from_, rule.max_rows)}
    return _locate(task, source, rule, data_root).identity()


@lru_cache(maxsize=1024)
def _digest_generated(name: str, params: str, split: str, n: int) -> str:
    items = GENERATORS.get(name)(json.loads(params), split, n, 0)
    return digest([[item.id, item.prompt, item.answer, *filter(None, (item.rejected,))] for item in items])


def _kept(definition: TaskDefinition, rows: SplitRows) -> list[int]:
    """Indices of the rows, without those that the task skips."""
    marks = {column: rows.values(column) for column in definition.skip}
    return [
        i for i in range(len(rows)) if not any(marks[column][i] == mark for column, mark in definition.skip.items())
    ]


def _choose(task: Task, split: SplitName, indices: list[int]) -> list[int]:
    """The rows of ``split``: what it holds out, or what the others leave."""
    rules = task.definition.splits
    rule = rules[split]
    # test first, so that the size of another held-out split does not move it
    for name in ("test", "validation", "train"):
        other = rules.get(name)
        if other is None or other.hold_out is None or not other.shares_rows(rule):
            continue
        if other.hold_out >= len(indices):
            raise UserError(
                f"the {name} split of task {task.definition.name!r} holds out {other.hold_out} rows of {len(indices)}",
                where=str(task.path),
                fix="Hold out fewer.",
            )
        held = _sample(indices, other.hold_out, f"{other.from_}/{other.seed}")
        if name == split:
            return _sample(held, rule.max_rows, f"{rule.from_}/{rule.seed}")
        left_out = set(held)
        indices = [i for i in indices if i not in left_out]
    return _sample(indices, rule.max_rows, f"{rule.from_}/{rule.seed}")


def _sample(indices: list[int], n: int | None, salt: str) -> list[int]:
    """``n`` of ``indices`` in their order: those whose salted hash is smallest."""
    if n is None or n >= len(indices):
        return indices
    ranked = sorted(indices, key=lambda i: blake2b(f"{salt}/{i}".encode(), digest_size=8).digest())
    return sorted(ranked[:n])


def _item(definition: TaskDefinition, item_id: str, row: Row, where: str) -> Item:
    def field(key: str, read: Callable[[], object]) -> Any:
        try:
            return _writable(read())
        except FieldError as error:
            raise UserError(f"{error}; the task's '{key}' needs it", where=where) from None

    if definition.kind == "generation" and definition.layout:
        return _answered(definition, item_id, row, where)
    if definition.layout not in (None, "options"):
        return _preference(definition, item_id, row, where)
    if definition.conversation:
        column = definition.conversation
        asked, said = field("conversation", lambda: preferences.read_conversation(lookup(column, row)))
        return Item(item_id, asked, said)
    prompt: str = field("prompt", lambda: render(definition.prompt, row))
    if definition.kind == "sequence-classification":
        label = _index(field("label", lambda: lookup(definition.label, row)), definition.labels, "label", where)
        return Item(item_id, prompt, definition.labels[label], label)
    if definition.kind == "multiple-choice" or definition.layout == "options":
        options: tuple[str, ...] = field("choices", lambda: _options(definition.choices, row))
        key = "label" if definition.label else "answer"
        right = field(
            key, lambda: lookup(definition.label, row) if definition.label else render(definition.answer, row)
        )
        label = _index(right, options, key, where)
        choices = tuple(definition.delimiter + option for option in options)
        if not all(option.strip() for option in options):
            raise UserError("an option is empty: it has no likelihood", where=where, fix="Give every option a text.")
        if definition.layout == "options":
            rejected: str = field("choices", lambda: preferences.wrong_option(choices, label, item_id))
            return Item(item_id, prompt, choices[label], rejected=rejected)
        return Item(item_id, prompt, choices[label], label, choices)
    answer: str = field("answer", lambda: render(definition.answer, row))
    if not answer.strip():
        raise UserError("the answer is empty", where=where)
    return Item(item_id, prompt, definition.delimiter + answer)


def _writable(value: object) -> Any:
    """``value``, if all text in it can be encoded.

    Raises:
        FieldError: it holds half of a character, as a cut emoji leaves it.
    """
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = text[error.start : error.end].encode("unicode_escape").decode()
                raise FieldError(f"the text holds {half}, which is half of a character") from None
    return value


def _answered(definition: TaskDefinition, item_id: str, row: Row, where: str) -> Item:
    """A prompt and its answer, from a row in one of the usual layouts."""
    try:
        prompt, answer = preferences.read_answered(str(definition.layout), row)
        text = render(definition.prompt, {**row, "prompt": prompt}) if definition.prompt else prompt
        _writable((text, answer))
    except FieldError as error:
        fix = f"The task reads rows in the layout {definition.layout!r}."
        raise UserError(str(error), where=where, fix=fix) from None
    return Item(item_id, prompt if text == prompt else text, definition.delimiter + answer)


def _preference(definition: TaskDefinition, item_id: str, row: Row, where: str) -> Item:
    """A pair of answers, or a single judged one."""
    assert definition.layout is not None
    try:
        found = preferences.read(definition.layout, row)
        if (found.good is not None) != definition.judged:
            raise FieldError(
                "the task says 'judged', and the row is a pair"
                if definition.judged
                else "the row is one judged answer, and the task does not say 'judged'"
            )
        rendered = render(definition.prompt, {**row, "prompt": found.prompt})
        prompt = found.prompt if rendered == found.prompt else rendered  # the turns stay known where nothing is added
    except FieldError as error:
        fix = f"The task reads rows in the layout {definition.layout!r}."
        raise UserError(str(error), where=where, fix=fix) from None
    before = definition.delimiter
    rejected = "" if found.rejected is None else before + found.rejected
    return Item(item_id, prompt, before + found.chosen, rejected=rejected, good=found.good)


def _judged(definition: TaskDefinition, item: Item, row: Row, where: str) -> Item:
    """With the program that judges a completion; rows of other splits need no tests."""
    if not definition.program:
        return item
    try:
        return replace(item, program=render(definition.program, {**row, "completion": COMPLETION}))
    except FieldError as error:
        raise UserError(f"{error}; the task's 'program' needs it", where=where) from None


def _options(choices: str | tuple[str, ...] | ChoicesInText, row: Row) -> tuple[str, ...]:
    """The options of a row.

    Raises:
        FieldError: they are not where ``choices`` says.
    """
    if isinstance(choices, tuple):
        return choices
    if isinstance(choices, str):
        found = lookup(choices, row)
        if not isinstance(found, list | tuple) or not found:
            raise FieldError(f"column {choices!r} holds no list of options")
        if any(option is None or isinstance(option, list | dict) for option in found):
            raise FieldError(f"column {choices!r} holds an option that is no text: {shown(found)}")
        return tuple(option if isinstance(option, str) else json.dumps(option) for option in found)
    _, mark, after = str(lookup(choices.field, row)).rpartition(choices.after)
    if not mark:
        raise FieldError(f"column {choices.field!r} does not say {choices.after!r}")
    return tuple(option.strip() for option in after.split(choices.separator))


def _index(value: object, names: Sequence[str], key: str, where: str) -> int:
    """Position that ``value``, a name or a position, has among ``names``.

    A JSON boolean is never a position: its text is looked up. A number that is the name of another position is refused.

    Raises:
        UserError: the value is none of them, or could be either.
    """
    text = value.strip() if isinstance(value, str) else json.dumps(value) if isinstance(value, bool | int) else None
    named = next((i for i, name in enumerate(names) if name == text), None)
    if named is None and isinstance(value, bool):
        named = next((i for i, name in enumerate(names) if name.casefold() == text), None)
    placed = value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names) else None
    if named is not None and placed is not None and named != placed:
        raise UserError(
            f"the {key} {shown(value)} is ambiguous: it is position {value} ({names[placed]!r}, from 0) and the name "
            f"of position {named}",
            where=where,
            fix='Write names as text ("2"), or give names that are no positions.',
        )
    found = named if named is not None else placed
    if found is None:
        fix = f"Allowed: {', '.join(names)} (or its index)."
        if text is not None and text.isdecimal() and isinstance(value, str):
            fix = f"Text is a name, never a position. Allowed: {', '.join(names)}. 'source.columns' can replace values."
        raise UserError(f"the {key} {shown(value)} is outside the set", where=where, fix=fix)
    return int(found)


def _check_answers(definition: TaskDefinition, items: Iterable[Item]) -> None:
    """Every right answer must be one that the parser can read; otherwise no model could be right."""
    if definition.kind != "generation" or not definition.judges_completions:
        return
    parse = PARSERS.get(definition.parser)
    for item in items:
        if parse(item.answer) is None:
            raise UserError(
                f"the parser {definition.parser!r} finds no answer in the right answer {item.answer[-60:]!r}",
                where=f"task {definition.name!r}, item {item.id}",
                fix="Choose another parser, or correct the row.",
            )
