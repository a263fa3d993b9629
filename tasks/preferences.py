"""Rows in the layouts people have them in: a prompt with a chosen and a rejected answer, one judged answer, or (without
a label) one answer that is trained on and scored.

========== ======================================================================================================
sharegpt   LLaMA-Factory: ``conversations`` [{from, value}], ``chosen`` and ``rejected`` {from, value}; or ``messages``
           (or ``completion``) [{role, content}] whose last turn is the answer, and ``label`` (or ``kto_tag``)
alpaca     LLaMA-Factory: ``instruction``, ``input``, and ``chosen`` and ``rejected`` as text
trl        TRL: ``prompt``, ``chosen``, ``rejected`` as text or as [{role, content}]; without ``prompt``, what both
           conversations begin with is the prompt; or ``prompt``, ``completion``, ``label``
hh         Anthropic HH: ``chosen`` and ``rejected`` are whole dialogues ``\\n\\nHuman: ...\\n\\nAssistant: ...``
options    any labelled task: its right option against one of the wrong ones
========== ======================================================================================================

A task of kind generation reads one answer (:func:`read_answered`): ``messages`` or ``conversations`` (sharegpt);
``instruction``, ``input``, ``output`` and, where given, ``system`` and ``history`` (alpaca); ``prompt`` and
``completion``, as text or turns, or ``messages`` (trl).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from harness.errors import kind_of, shown
from harness.item import Conversation
from tasks.template import FieldError

Layout = Literal["sharegpt", "alpaca", "trl", "hh", "options"]

ANSWERED: tuple[Layout, ...] = ("sharegpt", "alpaca", "trl")
"""Layouts of a task of kind generation."""

ROLES = {"human": "Human", "user": "Human", "gpt": "Assistant", "assistant": "Assistant", "system": "System"}
ANSWERING = "Assistant"


CHAT_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


class Turn(NamedTuple):
    """One turn of a conversation; ``role`` is Human, Assistant or System."""

    role: str
    text: str


@dataclass(frozen=True)
class Preference:
    """One row.

    Attributes:
        turns: the text before the answer.
        chosen: the better answer, or the only one.
        rejected: the worse one; None where there is one answer.
        good: whether the only answer is good; None where there are two.
    """

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str | None = None
    good: bool | None = None

    @property
    def prompt(self) -> Conversation:
        """The turns as one text: a single question as it is, a longer conversation with its roles."""
        return as_prompt(self.turns)


def as_prompt(turns: Sequence[Turn]) -> Conversation:
    """Turns before an answer as one text that keeps them."""
    chat = tuple((CHAT_ROLES[turn.role], turn.text) for turn in turns)
    if len(turns) == 1 and turns[0].role == "Human":
        return Conversation(turns[0].text, chat)
    text = "".join(f"\n\n{turn.role}: {turn.text}" for turn in turns) + f"\n\n{ANSWERING}:"
    return Conversation(text, chat)


def read_conversation(value: object) -> tuple[Conversation, str]:
    """A list of turns that ends with an answer: the turns before it, and the answer.

    Args:
        value: turns as ``{role, content}`` or, as ShareGPT writes them, ``{from, value}``.

    Raises:
        FieldError: it is no such list, a role is unknown, an answer is empty, or the last turn is no answer.
    """
    first = value[0] if isinstance(value, list | tuple) and value else {}
    keys = ("from", "value") if isinstance(first, Mapping) and "from" in first else ("role", "content")
    turns = _turns(value, *keys)
    if not turns or turns[-1].role != ANSWERING:
        raise FieldError("the last turn must be the assistant's answer")
    if len(turns) == 1:
        raise FieldError("there is no question before the answer")
    if any(turn.role == ANSWERING and not turn.text.strip() for turn in turns):
        raise FieldError("an answer of the assistant is empty")
    return as_prompt(turns[:-1]), turns[-1].text.strip()


def read_answered(layout: str, row: Mapping[str, object]) -> tuple[Conversation, str]:
    """The prompt and the answer of a row in one of the layouts :data:`ANSWERED`.

    Raises:
        FieldError: the row is not in that layout, or its answer is empty.
    """
    if layout == "alpaca":
        turns, answer = _instruction(row), _text(row, "output")
    elif layout == "trl" and row.get("messages") is None:
        turns, answer = _prompt(_field(row, "prompt")), _answer(_field(row, "completion"))
    else:
        column = next((c for c in ("messages", "conversations") if row.get(c) is not None), "messages")
        return read_conversation(_field(row, column))
    if not answer.strip():
        raise FieldError("the answer is empty")
    return as_prompt(turns), answer


def _instruction(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Turns of Alpaca's columns. LLaMA-Factory's ``history`` is a list of earlier [question, answer]."""
    turns = [Turn("System", row["system"])] if row.get("system") else []
    for pair in row.get("history") or ():
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise FieldError(f"column 'history' holds pairs of texts; found {shown(pair)}")
        turns += [Turn("Human", pair[0]), Turn(ANSWERING, pair[1])]
    asked = "\n".join(text for text in (_text(row, "instruction"), str(row.get("input") or "")) if text)
    return (*turns, Turn("Human", asked))


def read(layout: Layout, row: Mapping[str, object]) -> Preference:
    """The preference that a row states.

    Raises:
        FieldError: the row is not in that layout, an answer is empty, or both answers are the same.
    """
    if layout == "options":
        raise FieldError("the layout 'options' is read by the task's own choices")
    found = _READERS[layout](row)
    for name, text in (("chosen", found.chosen), ("rejected", found.rejected)):
        if text is not None and not text.strip():
            raise FieldError(f"the {name} answer is empty")
    if found.chosen == found.rejected:
        raise FieldError("the chosen and the rejected answer are the same text, so that nothing is preferred")
    if not found.turns:
        raise FieldError("there is no prompt")
    return found


def wrong_option(options: Sequence[str], right: int, item_id: str) -> str:
    """One of the wrong options, drawn by the item's id, so that it is the same in every cell.

    Raises:
        FieldError: there is only one option, or a wrong one reads like the right one.
    """
    wrong = [option for i, option in enumerate(options) if i != right]
    if not wrong:
        raise FieldError("there is one option only, so that none is wrong")
    ranked = sorted(wrong, key=lambda option: blake2b(f"{item_id}/{option}".encode(), digest_size=8).digest())
    if ranked[0] == options[right]:
        raise FieldError(f"the option {ranked[0]!r} is right and wrong")
    return ranked[0]


def _sharegpt(row: Mapping[str, object]) -> Preference:
    if "conversations" in row:
        turns = _turns(_field(row, "conversations"), "from", "value")
        chosen, rejected = (_turns([_field(row, n)], "from", "value")[0].text for n in ("chosen", "rejected"))
        return Preference(turns, chosen, rejected)
    turns = _turns(row.get("messages") or _field(row, "completion"), "role", "content")
    mark = row["label"] if "label" in row else _field(row, "kto_tag")
    return _last_is_answer(turns, mark)


def _alpaca(row: Mapping[str, object]) -> Preference:
    return Preference(_instruction(row), _text(row, "chosen"), _text(row, "rejected"))


def _trl(row: Mapping[str, object]) -> Preference:
    if "completion" in row:
        turns = _prompt(_field(row, "prompt"))
        return Preference(turns, _answer(_field(row, "completion")), good=_mark(_field(row, "label")))
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if "prompt" in row:
        return Preference(_prompt(row["prompt"]), _answer(chosen), _answer(rejected))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise FieldError("without a column 'prompt', 'chosen' and 'rejected' must be conversations")
    better, worse = (_turns(turns, "role", "content") for turns in (chosen, rejected))
    if better[:-1] != worse[:-1]:
        raise FieldError("the two conversations differ before their last turn, so that they have no common prompt")
    return Preference(better[:-1], better[-1].text, worse[-1].text)


def _hh(row: Mapping[str, object]) -> Preference:
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    mark = f"\n\n{ANSWERING}:"
    heads, answers = [], []
    for text in (chosen, rejected):
        head, found, answer = text.rpartition(mark)
        if not found or not text.lstrip().startswith("Human:"):
            raise FieldError(r"a dialogue reads '\n\nHuman: ...\n\nAssistant: ...', and this one does not")
        heads.append(head)
        answers.append(answer.strip())
    if heads[0] != heads[1]:
        raise FieldError("the two dialogues differ before their last answer, so that they have no common prompt")
    return Preference(_dialogue(heads[0]), answers[0], answers[1])


def _dialogue(text: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for piece in text.split("\n\n"):
        role, colon, said = piece.partition(":")
        if colon and role in ("Human", ANSWERING):
            turns.append(Turn(role, said.strip()))
        elif turns:  # an empty line within a turn
            turns[-1] = Turn(turns[-1].role, f"{turns[-1].text}\n\n{piece}")
    return tuple(turns)


_READERS: dict[str, Callable[[Mapping[str, object]], Preference]] = {
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "trl": _trl,
    "hh": _hh,
}


def _field(row: Mapping[str, object], name: str) -> object:
    if row.get(name) is None:
        raise FieldError(f"there is no column {name!r}; columns found: {', '.join(row) or 'none'}")
    return row[name]


def _text(row: Mapping[str, object], name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str):
        raise FieldError(f"column {name!r} holds {kind_of(value)} and no text")
    return value


def _turns(value: object, role: str, content: str) -> tuple[Turn, ...]:
    """A list of turns; the keys are ``role``/``content`` or ``from``/``value``."""
    if not isinstance(value, list | tuple):
        raise FieldError(f"a conversation is a list of turns, not {kind_of(value)}")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get(content), str) or turn.get(role) not in ROLES:
            raise FieldError(
                f"a turn has a {role!r} of {', '.join(ROLES)} and a text in {content!r}; found {shown(turn)}"
            )
        turns.append(Turn(ROLES[turn[role]], turn[content]))
    return tuple(turns)


def _prompt(value: object) -> tuple[Turn, ...]:
    return (Turn("Human", value),) if isinstance(value, str) else _turns(value, "role", "content")


def _answer(value: object) -> str:
    if isinstance(value, str):
        return value
    turns = _turns(value, "role", "content")
    if len(turns) != 1 or turns[0].role != ANSWERING:
        raise FieldError("an answer is a text or one turn of the assistant")
    return turns[0].text


def _last_is_answer(turns: tuple[Turn, ...], mark: object) -> Preference:
    if not turns or turns[-1].role != ANSWERING:
        raise FieldError("the last turn must be the assistant's answer")
    return Preference(turns[:-1], turns[-1].text, good=_mark(mark))


def _mark(value: object) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"a label is true (good) or false (bad), not {shown(value)}")
    return value
