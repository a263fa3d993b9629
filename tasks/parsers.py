"""Answer parsers: the final answer inside a completion, in one canonical form, or None where there is none.

A parser is applied to the completion and to the right answer alike; the item is right if both give the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.registry import Registry

Parser = Callable[[str], str | None]

PARSERS: Registry[Parser] = Registry(
    "parser",
    {
        "exact": "tasks.parsers:exact",
        "first-line": "tasks.parsers:first_line",
        "gsm8k": "tasks.parsers:gsm8k",
        "choice-letter": "tasks.parsers:choice_letter",
        "boxed": "tasks.parsers:boxed",
    },
)

PARSER_VERSIONS = {"gsm8k": 2, "boxed": 2}
"""Parsers that find other answers than they used to; the version is part of the digest of the tasks that use them."""

# a sign counts only where it cannot be a minus between two operands; it may stand before or after the currency
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]])(?P<sign>[-−+]))?(?:[$€£¥]\s?(?P<inner>[-−])?)?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?P<fraction>\.[0-9]+)?"
)


def exact(text: str) -> str | None:
    """The whole text without outer white space."""
    return text.strip() or None


def first_line(text: str) -> str | None:
    """The first line that is not blank, without outer white space."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


_SUM = re.compile(r"\A(?:[^=A-Za-z#]*[0-9][^=A-Za-z#]*=)+")
"""A line's beginning that calculates: numbers and signs up to an equals sign."""


def gsm8k(text: str) -> str | None:
    """The number of a worked answer, as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168).

    The first number behind the first ``####``, on its line (behind the sum where the line begins with one, as in
    ``5*3 = 15``); without that mark, the last number of the text. What a model writes after its marked answer (a unit,
    a remark, a further question) does not count. LaTeX's ``{,}`` between digits is a thousands separator.
    """
    _, mark, after = text.replace("{,}", ",").partition("####")
    line = after.lstrip().partition("\n")[0] if mark else text.replace("{,}", ",")
    line = _SUM.sub("", line) if mark else line
    numbers = [match for match in _NUMBER.finditer(line) if match["digits"] or match["fraction"]]
    if not numbers:
        return None
    found = numbers[0 if mark else -1]
    negative = (found["sign"] or found["inner"] or "+") in "-−"
    return _canonical_number(negative, (found["digits"] or "0").replace(",", ""), found["fraction"] or "")


def _canonical_number(negative: bool, whole: str, fraction: str) -> str:
    """``-007.50`` as ``-7.5``: text throughout, so that no digit of a long number is lost."""
    plain = whole.lstrip("0") or "0"
    decimals = fraction.lstrip(".").rstrip("0")
    number = f"{plain}.{decimals}" if decimals else plain
    return f"-{number}" if negative and number != "0" else number


# capitals A to H only: I is a pronoun; a small letter counts only in brackets or before punctuation
_STATED = re.compile(
    r"(?i:answer(?:\s+is|\s*:))[\s:*]*(?i:option\s+)?"
    r"(?:\((?P<in_brackets>[A-Ha-h])\)|(?P<capital>[A-H])\b(?!['’])|(?P<small>[a-h])(?=\s*(?:[.):,]|$)))"
)
_LEADING = re.compile(r"\s*\(?\*{0,2}([A-H])(?:\*{0,2}\s*$|\*{0,2}[).:,\n])")
_BRACKETED = re.compile(r"(?<!\w)\(?([A-H])\)")


def choice_letter(text: str) -> str | None:
    """The letter A to H of a multiple-choice answer.

    In this order: the last letter after "answer is" or "answer:"; a separate letter that opens the text; the last
        letter before a closing bracket. The article in "A dog" is not an answer.
    """
    stated = list(_STATED.finditer(text))
    if stated:
        return str(stated[-1][stated[-1].lastgroup or 0]).upper()
    leading = _LEADING.match(text)
    if leading:
        return leading[1]
    bracketed = _BRACKETED.findall(text)
    return str(bracketed[-1]) if bracketed else None


# the content is in braces, or is one word, as in "boxed 7"
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\(?:boxed|fbox)\s+([^\s${}]+)")


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, as in MATH (Hendrycks et al. 2021, arXiv:2103.03874).

    Spacing, ``\left``/``\right``, ``\text{}``, ``\dfrac`` against ``\frac``, a degree, percent or dollar sign and a
    final full stop do not count. Algebraically equal but differently written answers do count as different.
    """
    for mark in reversed(list(_BOXED.finditer(text))):
        inside = mark[1] if mark[1] is not None else _braced(text, mark.end())
        if inside is not None:
            return _canonical_latex(inside)
    return None


def _braced(text: str, start: int) -> str | None:
    """The text between the brace at ``start`` and its partner; None if that is cut off."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at]
    return None


def _canonical_latex(text: str) -> str | None:
    text = text.replace("{,}", ",")
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|!|,|;|:|quad|qquad)(?![A-Za-z])|\^\{?\\circ\}?|\\?[$%]|~", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    if re.fullmatch(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", text)
    return text or None
