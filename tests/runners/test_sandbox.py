"""Generated programs in real processes: right, wrong, endless, greedy, and hostile ones."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.errors import Unsupported, UserError
from runners.worker import sandbox
from tasks.scoring import pass_at_k, score_generation, summarise
from tasks.task import COMPLETION, Item
from tests.runners.context import context, task

isolated = pytest.mark.skipif(sandbox.why_not() is not None, reason=str(sandbox.why_not()))


@isolated
@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("def add(a, b):\n    return a + b\nassert add(2, 3) == 5\n", "passed"),
        ("def add(a, b):\n    return a - b\nassert add(2, 3) == 5\n", "failed"),
        ("this is no Python\n", "failed"),
        ("import os\nos.kill(os.getpid(), 9)\n", "failed"),
        ("x = []\nwhile True:\n    x.append(bytes(2**24))\n", "failed"),
        ("with open('big', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))\n", "failed"),
        ("import os\nwhile True:\n    os.fork()\n", "failed"),
        ("import threading\nthreading.Thread(target=print).start()\n", "failed"),
        ("open('mine', 'w').write('x')\nassert open('mine').read() == 'x'\n", "passed"),
        ("import os\nassert not os.environ.keys() - {'LC_CTYPE'}, os.environ\n", "passed"),
        ("import os\nassert [p for p in os.listdir('/proc') if p.isdigit()] == ['1', '2']\n", "passed"),
    ],
    ids=lambda value: value[:20].split("\n")[0] if isinstance(value, str) else None,
)
def test_endings(program: str, ending: str) -> None:
    # the limit is generous: nothing but the endless loop may take it
    ran = sandbox.run(program, time_limit_s=60.0)
    assert ran.ending == ending, ran.tail


@isolated
def test_an_endless_loop_ends_and_leaves_nothing_behind() -> None:
    ran = sandbox.run("import sys\nprint('began', flush=True)\nwhile True:\n    pass\n", time_limit_s=3.0)
    assert ran.ending in ("timeout", "failed"), "the wall clock or the CPU limit ended it"
    assert not list(Path(tempfile.gettempdir()).glob("program-*"))


@isolated
def test_no_file_of_ours_can_be_read_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    for act in (f"open({str(secret)!r}).read()", f"open({str(secret)!r}, 'w')", "open('/tmp/made-by-a-model', 'w')"):
        assert sandbox.run(f"{act}\n", time_limit_s=60.0).ending == "failed"
    assert secret.read_text() == "s"


@isolated
def test_no_host_file_or_socket_is_visible(tmp_path: Path) -> None:
    """Neither files that everybody may read nor Unix sockets; the session keyring is another one."""
    readable = tmp_path / "readable"
    readable.write_text("s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        (tmp_path / "s").chmod(0o777)
        for folder in (tmp_path, *tmp_path.parents):
            if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
                folder.chmod(0o755)
        connect = f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})\n"
        for act in (f"open({str(readable)!r})\n", "open('/etc/passwd')\n", "open('/sys/kernel/notes')\n", connect):
            ran = sandbox.run(act, time_limit_s=60.0)
            assert ran.ending == "failed"
            assert "FileNotFoundError" in ran.tail
    seen = sandbox.run("import os\nprint(sorted(os.listdir('/')))\n", time_limit_s=60.0).tail
    assert "'etc'" not in seen
    assert "'home'" not in seen


@isolated
def test_no_network_not_even_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=server.accept, daemon=True).start()
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)\n"
        ran = sandbox.run(program, time_limit_s=60.0)
        assert ran.ending == "failed"
        assert "unreachable" in ran.tail.lower() or "refused" in ran.tail.lower()
        socket.create_connection(("127.0.0.1", port), timeout=5).close()  # from outside it is there


def judged(ctx: Any, completions: list[str]) -> list[bool]:
    program = "def f(x):\n" + COMPLETION + "\nassert f(2) == 4\n"
    items = [Item(f"t/{i // 2}", "", "", program=program) for i in range(len(completions))]
    return sandbox.judge(ctx, items, completions)


def test_nothing_runs_unless_the_sweep_says_so(tmp_path: Path) -> None:
    ctx = context(_Nothing(), None)
    with pytest.raises(Unsupported, match="the sweep does not allow it"):
        judged(ctx, [f"    open({str(tmp_path / 'ran')!r}, 'w')"])
    assert not os.listdir(tmp_path)


def test_without_isolation_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(_Nothing(), None, run_generated_code=True)
    monkeypatch.setattr(sandbox, "why_not", lambda: "no namespaces here")
    with pytest.raises(Unsupported, match="no namespaces here"):
        judged(ctx, ["    return 4"])


class _Nothing:
    def eval(self) -> _Nothing:
        return self


@isolated
def test_pass_at_k_of_real_programs() -> None:
    ctx = context(_Nothing(), None, run_generated_code=True)
    passed = judged(ctx, ["    return 4", "    return x * x", "    return 5", "    return 2 + x"])
    assert passed == [True, True, False, True]
    assert ctx.facts["programs"] == {"passed": 3, "failed": 1, "timeout": 0}
    with pytest.raises(UserError, match="only test items have programs"):
        sandbox.judge(ctx, [Item("validation/0", "", "")], ["pass"])
    made = task(metrics=("pass_at_1", "pass_at_10", "answer_nll"), program="{completion}")
    items = [Item(f"t/{i // 2}", "", "") for i in range(4)]
    scored = score_generation(made, items, [""] * 4, passed=passed)
    assert [s.item for s in scored] == ["t/0#0", "t/0#1", "t/1#0", "t/1#1"]
    summary = summarise(scored, made.definition.metrics)
    assert summary["pass_at_1"].value == summary["accuracy"].value == (1 + 0.5) / 2
    assert summary["pass_at_1"].n == 2, "an item is an item, however often it was asked"
    assert summary["pass_at_10"] == (None, 0, None), "two samples say nothing about ten"


def test_pass_at_k_is_the_share_of_all_draws() -> None:
    """Against every subset of k samples, counted (Chen et al. 2021, equation 1)."""
    from itertools import combinations

    for n, c, k in [(5, 2, 1), (5, 2, 3), (10, 1, 10), (6, 0, 2), (7, 7, 3), (8, 3, 5)]:
        draws = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(d) for d in draws) / len(draws))
    assert pass_at_k(3, 3, 4) is None


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
