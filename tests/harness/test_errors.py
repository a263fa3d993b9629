from __future__ import annotations

import pickle

import pytest

from harness.errors import CheckFailed, PeftMatrixError, UserError, did_you_mean


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("no such file"), "no such file"),
        (UserError("no such file", where="a.yaml"), "a.yaml: no such file"),
        (UserError("no such file.", fix="Create it."), "no such file. Create it."),
        (
            UserError("unknown key 'x'", where="a.yaml, line 3", fix="Add it."),
            "a.yaml, line 3: unknown key 'x'. Add it.",
        ),
    ],
)
def test_a_user_error_says_what_where_and_what_to_do(error: UserError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("error", [UserError("what", where="where", fix="Fix."), CheckFailed("reload", "1 is not 2")])
def test_errors_cross_process_borders_whole(error: PeftMatrixError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_did_you_mean_names_the_close_ones_first_and_then_all() -> None:
    assert did_you_mean("lroa", ["lora", "full"]) == "Did you mean 'lora'? Allowed: full, lora."
    assert did_you_mean("xyz", ["lora", "full"]) == "Allowed: full, lora."
    assert did_you_mean("xyz", []) == "This mapping takes no keys."
