"""A completion passes its tests by the values of its functions and by nothing else."""

from __future__ import annotations

import pytest

from runners.worker import sandbox

isolated = pytest.mark.skipif(sandbox.why_not() is not None, reason=str(sandbox.why_not()))
TESTS = "\ndef check(f):\n    assert f(2) == 4\n    assert f(3) == 6\n\ncheck(double)\n"
WRONG = "def double(x):\n    return 5\n"
FAKES = {
    "exit_when_called": "import sys\ndef double(x):\n    sys.exit(0)\n",
    "exit_at_import": "import sys\nsys.exit(0)\n",
    "os_exit": "import os\ndef double(x):\n    os._exit(0)\n",
    "atexit": f"import atexit, os\natexit.register(os._exit, 0)\n{WRONG}",
    "excepthook": f"import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n{WRONG}",
    "always_equal": "class A:\n    def __eq__(self, o):\n        return True\ndef double(x):\n    return A()\n",
    "int_subclass": "class A(int):\n    def __eq__(self, o):\n        return True\ndef double(x):\n    return A(5)\n",
    "settrace": f"import sys, os\nsys.settrace(lambda *a: os._exit(0))\n{WRONG}",
    "execv": "import os, sys\ndef double(x):\n    os.execv(sys.executable, [sys.executable, '-c', ''])\n",
    "no_assert": f"import builtins\nbuiltins.AssertionError = None\n{WRONG}",
    "own_check": f"def check(f):\n    pass\n{WRONG}",
    "word_on_every_descriptor": (
        "import os\ndef double(x):\n    for fd in range(3, 60):\n        try:\n            os.write(fd, b'0' * 32)\n"
        "        except OSError:\n            pass\n    return 5\n"
    ),
    "nonsense_on_the_socket": (
        "import os\nfor fd in range(3, 60):\n    try:\n        os.write(fd, b'{\"ready\": true}\\n' * 9)\n"
        "    except OSError:\n        pass\n" + WRONG
    ),
    "nul": "def double(x):\n    return 2 * x\n\0",
    "surrogate": "def double(x):\n    return 2 * x  # \ud83d\n",
    "wrong": WRONG,
    "syntax": "def double(x:\n",
}


@isolated
@pytest.mark.parametrize("fake", FAKES)
def test_no_fake_passes(fake: str) -> None:
    ran = sandbox.check(FAKES[fake], TESTS, time_limit_s=60.0)
    assert ran.ending == "failed", ran.tail


@isolated
@pytest.mark.parametrize(
    ("candidate", "tests"),
    [
        pytest.param("def double(x):\n    return 2 * x\n", TESTS, id="right"),
        pytest.param(
            "def f(xs):\n    return {k: (k, [k]) for k in xs}\n",
            "assert f((1, 'a')) == {1: (1, [1]), 'a': ('a', ['a'])}\nassert isinstance(f([1]), dict)\n",
            id="nested_values",
        ),
        pytest.param("def f():\n    yield from (1, 2)\n", "assert list(f()) == [1, 2]\n", id="generator"),
        pytest.param("def f():\n    return 0.1 + 0.2\n", "assert abs(f() - 0.3) < 1e-9 and f() != 0.3\n", id="floats"),
        pytest.param(
            "def f():\n    raise ValueError('no')\n",
            "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert False\n",
            id="exceptions",
        ),
        pytest.param(
            "class A:\n    def __init__(self, n):\n        self.n = n\n    def more(self):\n"
            "        return self.n + 1\n",
            "a = A(4)\nassert a.n == 4\nassert a.more() == 5\n",
            id="objects",
        ),
        pytest.param(
            "def enc(s):\n    return s[::-1]\ndef dec(s):\n    return s[::-1]\n",
            "from random import choice\ns = 'abc'\nassert dec(s=enc(s)) == s\nassert len(enc(s)) == 3\n",
            id="several_names",
        ),
    ],
)
def test_a_right_program_passes(candidate: str, tests: str) -> None:
    ran = sandbox.check(candidate, tests, time_limit_s=60.0)
    assert ran.ending == "passed", ran.tail


@isolated
def test_an_endless_program_times_out() -> None:
    assert sandbox.check("while True:\n    pass\n", TESTS, time_limit_s=4.0).ending in ("timeout", "failed")
