"""The Dockerfile and the compose file name only what exists. Building needs a Docker daemon, so tests leave it out."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from peft_matrix.cli import app

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()
    if line.strip()
]


def copied() -> list[str]:
    found = []
    for name, rest in INSTRUCTIONS:
        if name == "COPY":
            found += [word for word in shlex.split(rest)[:-1] if not word.startswith("--")]
    return found


def test_every_instruction_is_one_docker_knows() -> None:
    known = {"FROM", "RUN", "ARG", "USER", "WORKDIR", "ENV", "COPY", "VOLUME", "CMD"}
    assert {name for name, _ in INSTRUCTIONS} == known
    assert INSTRUCTIONS[0][0] == "FROM"
    users = [i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "USER"]
    assert users, "the program does not run as root"


def test_every_path_it_copies_exists_and_is_let_through() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert rules[0] == "*"
    for path in copied():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in rules or path == ".", f".dockerignore keeps {path} out"


def test_everything_the_package_holds_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    assert set(packages) <= set(copied())
    extras = re.findall(r"--extra (\w+)", DOCKERFILE)
    assert extras
    assert set(extras) <= set(project["project"]["optional-dependencies"])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    (uv,) = re.findall(r'"uv==([\d.]+)"', DOCKERFILE)
    assert uv == pins["uv"]
    (python,) = re.findall(r"^FROM python:(3\.\d+)", DOCKERFILE, flags=re.M)
    assert project["project"]["requires-python"] == f">={python}"


def calls() -> list[tuple[str, ...]]:
    """Every call of the program that a container makes."""
    commands = [yaml.safe_load(rest) for name, rest in INSTRUCTIONS if name == "CMD"]
    commands += [service["command"] for service in COMPOSE["services"].values()]
    texts = [command[-1] if command[:2] == ["sh", "-c"] else shlex.join(command) for command in commands]
    found = [part.strip() for text in texts for part in text.split("&&")]
    return sorted({tuple(shlex.split(one)[1:]) for one in found if one.startswith("peft-matrix ")})


@pytest.mark.parametrize("call", calls(), ids=" ".join)
def test_every_call_is_of_a_verb_there_is(call: tuple[str, ...]) -> None:
    verb, *names = call
    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0
    for name in names:
        assert (ROOT / "runners" / "sweeps" / f"{name}.yaml").is_file()


def test_the_services_fit_together() -> None:
    assert set(COMPOSE) == {"services", "volumes"}
    demo, site = COMPOSE["services"]["demo"], COMPOSE["services"]["site"]
    assert demo["image"] == site["image"]
    mounted = {volume.split(":")[1] for service in (demo, site) for volume in service["volumes"]}
    assert mounted <= set(re.findall(r'"(/\w+)"', next(rest for name, rest in INSTRUCTIONS if name == "VOLUME")))
    named = {volume.split(":")[0] for volume in demo["volumes"] if not volume.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    assert ("site",) in calls()  # and what it serves is what the demo has built, below its working folder
    assert site["command"][-1] == "/work/site"
