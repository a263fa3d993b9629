"""Chat templates: a question as the conversation that an instruction-tuned model was trained on.

The template is a small program in the model's files. It runs in the sandbox of jinja2 (transformers' own environment),
with a limit of time and of memory; one that fails makes the cell ``unsupported``. A single C operation, such as a power
with a huge exponent, is not interrupted; the time limit of the cell ends it.

The template decides the text; where the loss and the end are follows from rendering the conversation with and without
its last turn. The text between the two is the answer, up to the token that ends it.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from harness.digests import digest
from harness.errors import Unsupported, UserError
from harness.item import Conversation

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedTokenizerBase

RENDER_S = 5.0
"""Seconds that one rendering may take; a usual one takes less than a millisecond."""
RENDER_BYTES = 2**30
"""Memory that a rendering may add to the process."""
MAX_CHARACTERS = 4_000_000
"""Characters of a rendered conversation."""

QUESTION, ANSWER = "Which number is it?", "number8264"
"""A conversation that shows what the template writes around an answer."""

Ids = list[int]
Message = dict[str, str]


class Chat:
    """The template of a tokenizer, and the token that ends an answer in it.

    Args:
        tokenizer: of transformers.
        model: its name, for messages.
        system: the system prompt of every conversation that has none; None: what the template does without one.

    Attributes:
        end: text of the token that ends an answer.
        end_id: its id.
        lead: text that the template writes between the question and the answer besides what it is asked with.

    Raises:
        Unsupported: there is no template; it fails, leaves the system prompt out, or ends no answer with a token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str, system: str | None = None) -> None:
        self.tokenizer, self.model, self.system = tokenizer, model, system
        if not getattr(tokenizer, "chat_template", None):
            raise Unsupported(
                f"the tokenizer of {model} has no chat template, which 'prompt_format: chat' needs; use "
                "'prompt_format: plain', or save a chat_template.jinja in the model's folder"
            )
        self._last: tuple[str, str] | None = None
        asked = self._messages(QUESTION)
        prefix, whole = self._render(asked, ask=True), self._render([*asked, _said(ANSWER)])
        if system and system.strip() not in prefix:
            raise Unsupported(f"the chat template of {model} leaves the system prompt out")
        between, found, after = whole.removeprefix(prefix).partition(ANSWER)
        if not whole.startswith(prefix) or not found:
            raise Unsupported(
                f"the chat template of {model} writes something else before an answer than it asks with, so that no "
                "text is the answer's alone"
            )
        self.lead = between
        self.end, self.end_id = self._end_of(after)

    def facts(self, prompt: str) -> dict[str, Any]:
        """For the record: the template's digest, the system prompt, the end, and how one question reads."""
        return {
            "template_digest": digest(self.tokenizer.chat_template),
            "system_prompt": self.system,
            "end_token": self.end,
            **({"before_answer": self.lead} if self.lead.strip() else {}),
            "example": self.asked(prompt),
        }

    def asked(self, prompt: str) -> str:
        """The text that the model reads before it answers ``prompt``, a question or a :class:`Conversation`."""
        if self._last is None or self._last[0] is not prompt:
            self._last = prompt, self._render(self._messages(prompt), ask=True)
        return self._last[1]

    def head(self, prompt: str) -> Ids:
        """Token ids of :meth:`asked`; the template writes every special token itself."""
        return self._ids(self.asked(prompt))

    def pair(self, prompt: str, answer: str, *, end: bool = True) -> tuple[Ids, Ids]:
        """Token ids of the question as asked, and of the answer with the token that ends it.

        The ids before the answer are those of the question alone, as in generation.

        Args:
            end: False leaves the end token out.

        Raises:
            Unsupported: the template changes the answer's text.
        """
        text, head = self.asked(prompt), self.head(prompt)
        tail = self._answer([*self._messages(prompt), _said(answer)], text)
        tail = tail if end else tail.removesuffix(self.end)
        both = self._ids(text + tail)
        return head, both[len(head) :] if both[: len(head)] == head else self._ids(tail)

    def earlier_answers(self, prompt: str, head: Ids) -> list[bool]:
        """True for ids of :meth:`head` that belong to answers of earlier turns, their end tokens included.

        Raises:
            Unsupported: the template rewrites earlier turns when others follow.
        """
        marks = [False] * len(head)
        if not isinstance(prompt, Conversation):
            return marks
        messages, text = self._messages(prompt), self.asked(prompt)
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:at], ask=True)
            upto = before + self._answer(messages[: at + 1], before)
            if not text.startswith(upto):
                raise Unsupported(
                    f"the chat template of {self.model} writes an earlier answer differently once another turn "
                    "follows, so that a loss on every answer is not defined; train on single turns"
                )
            for k in range(_common(self._ids(before), head), _common(self._ids(upto), head)):
                marks[k] = True
        return marks

    def _answer(self, messages: Sequence[Message], before: str) -> str:
        """Text of the last turn after ``before``, up to and with the end token."""
        whole, content = self._render(messages), messages[-1]["content"]
        rest = whole[len(before) :]
        at = rest.find(content)
        if not whole.startswith(before) or at < 0:
            raise Unsupported(f"the chat template of {self.model} changes the answer {content[:60]!r}")
        at += len(content)
        closing = rest.find(self.end, at)
        return rest[: closing + len(self.end)] if closing >= 0 else rest[:at] + self.end

    def _messages(self, prompt: str) -> list[Message]:
        turns = list(prompt.turns) if isinstance(prompt, Conversation) else [("user", prompt)]
        if self.system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", self.system))
        messages = [{"role": role, "content": text if role == "user" else text.strip()} for role, text in turns]
        for message in messages:
            self._check(message["content"])
        return messages

    def _check(self, text: str) -> None:
        end = getattr(self, "end", None)
        if end and end in text:
            raise UserError(
                f"a text holds {end!r}, which ends a turn in the chat template of {self.model}: {text[:60]!r}",
                fix="Remove it from the row; the template writes it.",
            )

    def _render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        self._check(messages[-1]["content"])
        try:
            with limited(RENDER_S, RENDER_BYTES):
                text = str(
                    self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
                )
        except Exception as error:  # a template is a program of somebody else; however it fails, it is its failure
            said = " ".join(str(error).split())[:200] or "no reason given"
            roles = ", ".join(message["role"] for message in messages)
            raise Unsupported(
                f"the chat template of {self.model} failed on the turns {roles}: {type(error).__name__}: {said}"
            ) from error
        if len(text) > MAX_CHARACTERS:
            raise Unsupported(
                f"the chat template of {self.model} wrote {len(text):,} characters, {MAX_CHARACTERS:,} are read"
            )
        return text

    def _ids(self, text: str) -> Ids:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_of(self, after: str) -> tuple[str, int]:
        """The first special token behind an answer; the tokenizer's own end where the template writes nothing."""
        tokenizer = self.tokenizer
        special = {str(token.content): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
        found = [text for text in special if text in after]
        if found:
            first = min(found, key=lambda text: (after.index(text), -len(text)))
            return first, special[first]
        if after.strip() or tokenizer.eos_token_id is None:
            raise Unsupported(
                f"the chat template of {self.model} ends an answer with {after[:40]!r}, which holds no special token, "
                "so that generation would not stop there"
            )
        return str(tokenizer.eos_token), int(tokenizer.eos_token_id)


def use(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> None:
    """From here on, :mod:`runners.worker.encoding` asks in the chat's form with this tokenizer.

    The end of an answer becomes the tokenizer's end of sequence: generation stops there, training ends with it.
    """
    tokenizer.eos_token = chat.end
    tokenizer.peft_matrix_chat = chat


def of(tokenizer: PreTrainedTokenizerBase) -> Chat | None:
    """The chat of a tokenizer; None where prompts are plain text."""
    return getattr(tokenizer, "peft_matrix_chat", None)


class TooSlow(Exception):
    """A template did not end in time."""


@contextlib.contextmanager
def limited(seconds: float, more_bytes: int) -> Iterator[None]:
    """Limits of what runs within, in the main thread: time, and memory that the process may add.

    Raises:
        TooSlow: the time is over.
        MemoryError: more memory was asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a template is rendered in the main thread, where a signal can end it")

    def over(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"it did not end within {seconds:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, over)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        allowed = _address_space() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (allowed if soft == -1 else min(soft, allowed), hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def _address_space() -> int:
    """Bytes of address space that the process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text.strip()}


def _common(a: Ids, b: Ids) -> int:
    """Length of the common beginning."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
