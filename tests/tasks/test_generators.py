import pytest

from harness.errors import UserError
from tasks.generators import GENERATORS
from tasks.generators.addition import generate as addition
from tasks.generators.draw import draw, split_of
from tasks.generators.strings import generate as strings

COMPOSE = {"operations": ["reverse", "shift"], "symbol": "X"}


def by_hand(text: str, operations: list[str]) -> str:
    for operation in operations:
        if operation == "reverse":
            text = "".join(reversed(text))
        if operation == "shift":
            text = "".join("abcdefghij"[("abcdefghij".index(c) + 1) % 10] for c in text)
    return text


@pytest.mark.parametrize("operations", [["copy"], ["reverse"], ["shift"], ["reverse", "shift"], ["shift", "shift"]])
def test_strings(operations: list[str]) -> None:
    for item in strings({"operations": operations, "symbol": "Q"}, "test", 200, 0):
        text = item.prompt[1:-1]
        assert item.prompt == f"Q{text}="
        assert len(text) == 6
        assert item.answer == by_hand(text, operations)


def test_the_example_of_the_documentation() -> None:
    assert by_hand("abcdef", ["reverse", "shift"]) == "gfedcb"
    items = strings({**COMPOSE, "length": 2, "alphabet": "ab"}, "train", 2, 0)
    assert {i.prompt: i.answer for i in items}.items() <= {
        "Xaa=": "bb",
        "Xab=": "ab",
        "Xba=": "ba",
        "Xbb=": "aa",
    }.items()


def test_deterministic_and_different_by_seed() -> None:
    assert strings(COMPOSE, "train", 500, 0) == strings(COMPOSE, "train", 500, 0)
    assert strings(COMPOSE, "train", 500, 0) != strings(COMPOSE, "train", 500, 1)
    assert strings(COMPOSE, "train", 500, 0)[:100] == strings(COMPOSE, "train", 100, 0)
    assert [i.id for i in strings(COMPOSE, "test", 3, 0)] == ["test/ibfcjh", "test/idjdfj", "test/cdfbhg"]


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)])
def test_splits_are_disjoint_for_any_seeds(seeds: tuple[int, int, int]) -> None:
    for generate, params, sizes in (
        (strings, COMPOSE, (8000, 500, 1000)),
        (addition, {}, (7500, 900, 900)),
    ):
        prompts = [
            {i.prompt for i in generate(params, split, n, seed)}
            for split, n, seed in zip(("train", "validation", "test"), sizes, seeds, strict=True)
        ]
        assert tuple(map(len, prompts)) == sizes, "no item twice"
        assert len(set.union(*prompts)) == sum(sizes)


def test_one_tasks_test_strings_are_in_no_other_tasks_training() -> None:
    trained = {i.prompt[1:] for i in strings({"operations": ["copy"], "symbol": "C"}, "train", 8000, 3)}
    assert not trained & {i.prompt[1:] for i in strings(COMPOSE, "test", 1000, 0)}


def test_addition() -> None:
    for item in addition({}, "train", 500, 0):
        left, right = item.prompt[:-1].split("+")
        assert (len(left), len(right), len(item.answer)) == (2, 2, 3)
        assert int(item.answer[::-1]) == int(left) + int(right)
    shifted = {i.prompt: i.answer for i in addition({"offset": 7}, "train", 7500, 0)}
    assert all(int(a[::-1]) == sum(map(int, p[:-1].split("+"))) + 7 for p, a in shifted.items())


def test_shares_are_as_said() -> None:
    splits = [split_of(n) for n in range(20_000)]
    assert abs(splits.count("train") / 20_000 - 0.8) < 0.01
    assert abs(splits.count("test") / 20_000 - 0.1) < 0.01


def test_more_than_there_are() -> None:
    with pytest.raises(UserError, match=r"3 different test items.*gives at most [012]\. Ask for fewer"):
        draw(4, "test", 3, 0)
    with pytest.raises(UserError, match="at most 10000"):
        draw(200_000, "train", 10_001, 0)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"operations": ["reverse"], "symbl": "X"}, "no parameter 'symbl'.*symbol"),
        ({"operations": ["rotate"], "symbol": "X"}, r"parameter 'operations\.0'.*'copy', 'reverse' or 'shift'"),
        ({"operations": [], "symbol": "X"}, "parameter 'operations'"),
        ({**COMPOSE, "alphabet": "aab"}, "parameter 'alphabet': a character occurs twice"),
    ],
)
def test_bad_parameters(params: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        strings(params, "train", 1, 0)


def test_registered() -> None:
    assert GENERATORS.get("strings") is strings
    assert GENERATORS.get("addition") is addition
