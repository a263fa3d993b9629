import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.parsers import PARSERS, boxed, choice_letter, exact, first_line, gsm8k


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
        ("#### 1,234,567", "1234567"),
        ("#### $1,000.50", "1000.5"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### −5", "-5"),
        ("#### 18.", "18"),
        ("#### 18.00", "18"),
        ("#### 007", "7"),
        ("#### .5", "0.5"),
        ("#### 0.50", "0.5"),
        ("#### -0", "0"),
        ("#### +3", "3"),
        ("####18", "18"),
        ("####\n18", "18"),
        ("#### 18%", "18"),
        ("#### 18 dollars", "18"),
        ("#### 5*3 = 15", "15"),
        ("#### 3 + 4 = 7 (since 3+4)", "7"),
        ("#### 7 (since 3+4)", "7"),
        ("#### 5 apples and 3 pears", "5"),
        ("#### 12 cm2", "12"),
        ("#### 9{,}500", "9500"),
        ("The answer is $9{,}500.", "9500"),
        ("#### 18\n\nQuestion: what is 2 + 2?\nAnswer: #### 4", "18"),
        ("#### 18\nThe answer is: 19", "18"),
        ("#### none", None),
        ("7 apples\n#### none", None),
        ("####", None),
        ("The answer is 42.", "42"),
        ("so 3 apples and 4 pears, 7 in all", "7"),
        ("10-5", "5"),
        ("10 - 5 = 5", "5"),
        ("(2)-3", "3"),
        ("it fell to -3 degrees", "-3"),
        ("2,3", "3"),
        ("1,2345", "2345"),
        ("costs €12", "12"),
        ("1.5.", "1.5"),
        ("99999999999999999999999999999999.10", "99999999999999999999999999999999.1"),
        ("no number", None),
        ("", None),
        (" \n", None),
    ],
)
def test_gsm8k(text: str, expected: str | None) -> None:
    assert gsm8k(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        (" B\n", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ("B) the second", "B"),
        ("**B**", "B"),
        ("The answer is (E).", "E"),
        ("the answer is b.", "B"),
        ("Answer: (c)", "C"),
        ("The answer is option D", "D"),
        ("The answer is A because A is a letter", "A"),
        ("At first the answer is A. No: the answer is B.", "B"),
        ("21 x 3 = 63, so (D)", "D"),
        ("A dog is an animal", None),
        ("I think so", None),
        ("The answer is a dog", None),
        ("The answer is Because", None),
        ("21", None),
        ("", None),
    ],
)
def test_choice_letter(text: str, expected: str | None) -> None:
    assert choice_letter(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}"),
        (r"\boxed{ 1,\!000 }", "1000"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{(1,234)}", "(1,234)"),
        (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"(3,\frac{\pi}{2})"),
        (r"\boxed{\text{Tuesday}}", "Tuesday"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{\$3.50}", "3.50"),
        (r"\boxed{.5}", "0.5"),
        (r"\boxed{x^{2}+1}", "x^{2}+1"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{1} and the cut off \boxed{2", "1"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 7$", "7"),
        (r"\boxed{}", None),
        (r"\boxed{5", None),
        ("5", None),
        ("", None),
    ],
)
def test_boxed(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


def test_exact_and_first_line() -> None:
    assert exact("  gfedcb \n") == "gfedcb"
    assert exact("a b") == "a b"
    assert exact(" \n") is None
    assert first_line("\n\n  yes \nno") == "yes"
    assert first_line("\n \n") is None


@pytest.mark.parametrize("name", PARSERS.names())
@given(text=st.text(alphabet=st.sampled_from("ab A(B).0519,-−$#\\boxed{}\n %"), max_size=60))
def test_no_text_breaks_a_parser(name: str, text: str) -> None:
    found = PARSERS.get(name)(text)
    assert found is None or (found and found == found.strip())


@given(number=st.integers(min_value=-(10**12), max_value=10**12))
def test_gsm8k_reads_every_integer_with_and_without_commas(number: int) -> None:
    assert gsm8k(f"steps 1 2 3\n#### {number}") == str(number)
    assert gsm8k(f"so the total is {number:,}.") == str(number)


def test_boxed_thousands_separators_are_one_number() -> None:
    assert boxed(r"\boxed{10{,}000}") == boxed(r"\boxed{10,000}") == "10000"
    assert boxed(r"\boxed{$9{,}500}") == "9500"
