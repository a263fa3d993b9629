import pytest

from tasks.template import FieldError, check, lookup, render

ROW = {"q": "Is {it}?", "n": 3, "yes": True, "options": ["a", "b"], "choices": {"text": ["x", "y"]}, "gone": None}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{q}", "Is {it}?"),
        ("{n} {yes}", "3 true"),
        ("{options}", "a\nb"),
        ("{options[1]} {choices[text][0]}", "b x"),
        ("{{literal}} {n}", "{literal} 3"),
        ("no field", "no field"),
    ],
)
def test_render(template: str, expected: str) -> None:
    assert render(template, ROW) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{missing}", "there is no column 'missing'; columns found: q, n, yes"),
        ("{gone}", "'gone' is null"),
        ("{options[7]}", r"holds nothing at 'options\[7\]'"),
        ("{choices[letter]}", "holds nothing"),
        ("{n[0]}", "holds nothing"),
        ("{q.__class__}", "there is no column 'q.__class__'"),
    ],
)
def test_a_row_without_the_field(template: str, says: str) -> None:
    with pytest.raises(FieldError, match=says):
        render(template, ROW)


@pytest.mark.parametrize("template", ["{q", "q}", "{}", "{q[}", "{q[a}", "{[0]}", "{a{b}}"])
def test_malformed(template: str) -> None:
    with pytest.raises(FieldError):
        check(template)


def test_lookup_gives_the_value_itself() -> None:
    assert lookup("choices[text]", ROW) == ["x", "y"]
    assert lookup("n", ROW) == 3
