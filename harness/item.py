"""One example of a task."""

from __future__ import annotations

from dataclasses import dataclass


class Conversation(str):
    """A prompt of several turns. As a text it names the roles; with a chat template the model reads the turns.

    Attributes:
        turns: (role, text) of each, the role ``system``, ``user`` or ``assistant``; the answer is not among them.
    """

    turns: tuple[tuple[str, str], ...]

    def __new__(cls, text: str, turns: tuple[tuple[str, str], ...]) -> Conversation:
        """The text with its turns."""
        made = super().__new__(cls, text)
        made.turns = turns
        return made

    def __getnewargs__(self) -> tuple[str, tuple[tuple[str, str], ...]]:  # type: ignore[override]  # one more than a text's
        return str(self), self.turns


@dataclass(frozen=True)
class Item:
    """One example, ready for a model.

    Attributes:
        id: source split and position in it; stable, so that items of two cells can be paired.
        prompt: what the model reads (classification: the text); of several turns a :class:`Conversation`.
        answer: what follows the prompt, delimiter included (classification: the label's name).
        label: class index or index of the right choice; -1 where there is none.
        choices: the options of a multiple-choice item, each as it would follow the prompt.
        program: what judges a completion by running, with :data:`tasks.task.COMPLETION` where it goes.
        contexts: what the model reads before each option, where that is not the prompt for all of them.
        rejected: the worse answer of a preference, delimiter included; "" where there is none.
        good: whether ``answer`` is a good one, for preferences without pairs; None elsewhere.
    """

    id: str
    prompt: str
    answer: str
    label: int = -1
    choices: tuple[str, ...] = ()
    program: str = ""
    contexts: tuple[str, ...] = ()
    rejected: str = ""
    good: bool | None = None

    def before(self, option: int) -> str:
        """The text that the model reads before an option."""
        return self.contexts[option] if self.contexts else self.prompt
