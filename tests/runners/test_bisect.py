"""Bisection over packages: the search, and real virtual environments of real wheels that the test makes."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from harness.errors import UserError
from runners.tools.bisection import (
    Bisection,
    BisectRun,
    Change,
    Environments,
    Verdict,
    bisect,
    build,
    read_lock,
    smallest,
)
from tests.runners.conftest import Bench


# --- the search ----------------------------------------------------------------------------------
def asking(culprits: Collection[Change], asked: list[tuple[Change, ...]]) -> Callable[[tuple[Change, ...]], Verdict]:
    """A judge to whom everything with all ``culprits`` in it is bad; it writes down what it is asked."""

    def judge(some: tuple[Change, ...]) -> Verdict:
        asked.append(some)
        return "bad" if set(culprits) <= set(some) else "good"

    return judge


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_every_single_culprit_and_every_pair_is_found(size: int) -> None:
    changes = [Change(f"p{i}", "1", "2") for i in range(size)]
    for culprits in (*itertools.combinations(changes, 1), *itertools.combinations(changes, 2)):
        asked: list[tuple[Change, ...]] = []
        assert smallest(changes, asking(culprits, asked)) == culprits
        assert len(asked) == len(set(asked))  # no environment is judged twice
        if len(culprits) == 1:
            assert len(asked) <= 2 * max(1, size.bit_length())


def test_what_cannot_be_judged_does_not_lead_astray() -> None:
    """Some mixtures do not even start, as real ones do; what is named must be bad and smallest all the same."""
    chance = random.Random(3)
    changes = [Change(f"p{i}", "1", "2") for i in range(9)]
    for _ in range(50):
        culprits = set(chance.sample(changes, chance.randint(1, 3)))
        plain, broken = asking(culprits, []), chance.choice(changes)
        judge = functools.partial(_unless_broken, plain, broken)
        found = smallest(changes, judge)
        assert judge(found) == "bad"
        assert culprits <= set(found)
        assert all(judge(tuple(c for c in found if c != one)) != "bad" for one in found)


def _unless_broken(plain: Callable[[tuple[Change, ...]], Verdict], broken: Change, some: tuple[Change, ...]) -> Verdict:
    return "unresolved" if broken in some and len(some) < 4 else plain(some)


# --- the locks -----------------------------------------------------------------------------------
def test_locks_are_read_as_freeze_writes_them(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# made by uv\nTorch==2.13.0+cpu\nruamel.yaml==0.18 # via x\n\n"
        "colorama==0.4.6 ; sys_platform == 'win32'\nabc==1 \\\n    --hash=sha256:00\n"
    )
    assert read_lock(lock) == {"torch": "2.13.0+cpu", "ruamel-yaml": "0.18", "abc": "1"}
    for line, said in (
        ("torch>=2", "not pinned to one version"),
        ("-e .", "not a pinned package"),
        ("x", "not a pinned"),
    ):
        lock.write_text(f"a==1\n{line}\n")
        with pytest.raises(UserError, match=said) as caught:
            read_lock(lock)
        assert caught.value.where == f"{lock}:2"


# --- real environments ---------------------------------------------------------------------------
def wheel(folder: Path, name: str, version: str, code: str) -> None:
    """A wheel as a package index would serve it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def line(path: str, text: str) -> str:
        sha = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        return f"{path},sha256={sha},{len(text.encode())}\n"

    record = "".join(line(path, text) for path, text in files.items()) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


PACKAGES = ("alpha", "beta", "gamma", "delta", "epsilon")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions of five packages, and no other package index within reach."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version in itertools.product(PACKAGES, (1, 2)):
        wheel(folder, name, f"{version}.0", f"NEW = {version == 2}\n")
    for name, value in (("UV_NO_INDEX", "1"), ("PIP_NO_INDEX", "1")):
        monkeypatch.setenv(name, value)
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, str(folder))
    return folder


class Measured:
    """A laboratory whose cell is a line of Python, run by the environment's own interpreter."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        self.code = code
        self.runs: list[str] = []

    def build(self, pinned: Mapping[str, str]) -> Path:
        return build(self.folder, pinned)

    def run(self, python: Path) -> BisectRun:
        self.runs.append(python.parents[1].name)
        program = f"import {', '.join(PACKAGES)}\nnumber = {len(self.runs)}\n{self.code}"
        done = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, check=False)
        if done.returncode:
            return BisectRun(None, done.stderr.strip().splitlines()[-1])
        return BisectRun(float(done.stdout))


def searched(tmp_path: Path, code: str, bad: Mapping[str, str] | None = None) -> tuple[Bisection, Measured]:
    laboratory = Measured(tmp_path / "work", code)
    good = dict.fromkeys(PACKAGES, "1.0")
    return bisect(good, bad or dict.fromkeys(PACKAGES, "2.0"), laboratory, floor=0.05), laboratory


# a value with scatter that does not depend on the packages, so that no two runs are alike
NOISY = "value = 100 + number * 7 % 5 * 0.1\n"


def test_the_package_that_made_the_value_worse_is_named(index: Path, tmp_path: Path) -> None:
    found, laboratory = searched(tmp_path, NOISY + "value += 20 * gamma.NEW + 3 * alpha.NEW\nprint(value)")
    assert (found.kind, found.culprits) == ("package", (Change("gamma", "1.0", "2.0"),))
    assert found.sentence() == "It is gamma 1.0 → 2.0: with this change alone the cell is bad."
    assert len(found.differing) == 5
    good = laboratory.runs[0]
    turns = laboratory.runs[2:10]
    assert turns.count(good) == 4
    assert all(one != other for one, other in itertools.pairwise(turns))  # in turns with the good environment
    assert json.loads(json.dumps(found.as_json()))["culprits"] == [{"package": "gamma", "good": "1.0", "bad": "2.0"}]
    installed = subprocess.run(
        [str(build(tmp_path / "work", {**dict.fromkeys(PACKAGES, "1.0"), "gamma": "2.0"})), "-I", "-c",
         "from importlib.metadata import version; print(version('alpha'), version('gamma'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert installed.stdout.split() == ["1.0", "2.0"]


def test_packages_harmful_only_together_are_named_together(index: Path, tmp_path: Path) -> None:
    found, _ = searched(tmp_path, "assert not (beta.NEW and epsilon.NEW), 'shapes differ'\nprint(1)")
    assert found.kind == "interaction"
    assert [change.package for change in found.culprits] == ["beta", "epsilon"]
    assert "Without any one of them the cell is good" in found.sentence()
    assert {step.verdict for step in found.steps} == {"good", "bad"}


def test_unbuildable_or_otherwise_failing_mixture_undecided(index: Path, tmp_path: Path) -> None:
    code = "assert not delta.NEW or alpha.NEW, 'delta needs the new alpha'\nassert not gamma.NEW, 'wrong'\nprint(1)"
    bad = {**dict.fromkeys(PACKAGES, "2.0"), "missing": "9.0"}
    wheel(index, "missing", "9.0", "")
    (index / "epsilon-2.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="could not be built"):
        searched(tmp_path, code, bad)
    found, _ = searched(tmp_path, code, {**bad, "epsilon": "1.0"})
    assert [change.package for change in found.culprits] == ["gamma"]


def test_locks_that_do_not_differ_in_what_is_asked_are_no_riddle(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not differ: 100"):
        searched(tmp_path, NOISY + "print(value)")
    with pytest.raises(UserError, match="fails in the good environment too"):
        searched(tmp_path, "raise SystemExit('no')")
    with pytest.raises(UserError, match="the same versions"):
        searched(tmp_path, "print(1)", dict.fromkeys(PACKAGES, "1.0"))


def test_a_real_cell_is_run_and_read_by_its_metric(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bench.environment.items():
        monkeypatch.setenv(name, value)
    path = bench.write(methods=["none"])
    python = bench.root / "work" / "bin" / "python"  # an environment's layout around the current interpreter
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    laboratory = Environments(bench.root / "bisect", path, "*.none.none.*", "evaluate.stage_s")
    result = laboratory.run(python)
    assert result.value is not None, result.failure
    assert result.value > 0
    bench.write(methods=["none"], tasks=["nosuch"])
    assert "nosuch" in laboratory.run(python).failure
