from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from harness import provenance
from harness.comparability import machine, place
from harness.provenance import PACKAGES, checkout, environment, fingerprint
from harness.record import EnvironmentView
from tests.harness.examples import make_record
from tests.reports.making import cell

GPU = {"name": "NVIDIA L4", "driver": "580.1", "uuid": "GPU-1", "power_limit_w": 72.0}
BASE: dict[str, Any] = {
    "python": "3.11.7",
    "implementation": "CPython",
    "platform": "Linux",
    "packages": {"torch": "2.13.0", "peft": "0.21.2", "lm-eval": None},
    "harness": {"commit": "abc", "dirty": False, "why": ""},
    "cpu": {"model": "a CPU", "cores": 4, "physical_cores": 2},
    "memory_bytes": 1,
    "host": "0123",
    "gpus": [GPU],
    "gpus_missing": None,
    "gpus_missing_detail": "",
}


def test_an_environment_is_plain_json_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.socket, "gethostname", lambda: "secret-host.example")
    found = environment()
    assert set(found) == set(BASE)
    assert "secret-host" not in json.dumps(found)
    assert len(found["host"]) == 12
    assert found["packages"]["torch"] == metadata.version("torch")
    assert set(found["packages"]) == set(PACKAGES)
    assert found["cpu"]["cores"] >= 1
    assert found["memory_bytes"] > 0
    assert bool(found["gpus"]) != bool(found["gpus_missing"])
    assert fingerprint(found) == fingerprint(json.loads(json.dumps(found)))


def test_two_hosts_differ_and_one_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = []
    for name in ("a", "b", "a"):
        monkeypatch.setattr(provenance.socket, "gethostname", lambda name=name: name)
        hosts.append(environment()["host"])
    assert hosts[0] == hosts[2] != hosts[1]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "a-package-nobody-has"))
    assert environment()["packages"] == {"torch": metadata.version("torch"), "a-package-nobody-has": None}


def test_reading_the_environment_imports_none_of_the_packages() -> None:
    code = (
        "import sys; from harness.provenance import environment, fingerprint; fingerprint(environment())\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "[]\n"


# --- the fingerprint -----------------------------------------------------------------------------
def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    other = copy.deepcopy(BASE)
    change(other)
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e["packages"].update(torch="2.14.0"),
        lambda e: e["packages"].update({"lm-eval": "0.4.13"}),
        lambda e: e.update(python="3.12.0"),
        lambda e: e["cpu"].update(model="another CPU"),
        lambda e: e["gpus"][0].update(driver="590.0"),
        lambda e: e["gpus"][0].update(name="NVIDIA H100"),
        lambda e: e["gpus"].clear(),
    ],
)
def test_what_can_change_a_number_changes_the_fingerprint(change: Callable[[dict[str, Any]], object]) -> None:
    assert fingerprint(changed(change)) != fingerprint(BASE)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(host="4567"),
        lambda e: e.update(python="3.11.9"),
        lambda e: e["harness"].update(commit="def", dirty=True),
        lambda e: e["gpus"].append({**GPU, "uuid": "GPU-2"}),
        lambda e: e["gpus"][0].update(power_limit_w=60.0),
        lambda e: e.update(memory_bytes=2, platform="other", time="now"),
        lambda e: e.update(packages=dict(reversed(e["packages"].items()))),
    ],
)
def test_what_cannot_change_a_number_leaves_the_fingerprint(change: Callable[[dict[str, Any]], object]) -> None:
    assert fingerprint(changed(change)) == fingerprint(BASE)


# --- the checkout --------------------------------------------------------------------------------
@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file").write_text("one")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "file"], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run([git, "-C", str(folder), *arguments], env=clean, check=True, capture_output=True)
    return folder


def test_checkout_has_a_commit_and_a_dirty_flag(repository: Path) -> None:
    found = checkout(repository)
    assert len(found["commit"]) == 40
    assert (found["dirty"], found["why"]) == (False, "")
    (repository / "new").write_text("not tracked")
    assert checkout(repository)["dirty"] is False
    (repository / "file").write_text("two")
    assert checkout(repository)["dirty"] is True


def test_variables_that_point_git_elsewhere_are_ignored(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert len(checkout(repository)["commit"]) == 40


def test_package_inside_another_checkout_has_no_commit(repository: Path) -> None:
    inside = repository / "site-packages"
    inside.mkdir()
    assert checkout(inside) == {"commit": None, "dirty": None, "why": "not a git checkout"}


def test_without_git_the_commit_is_missing_with_a_reason(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert checkout(repository) == {"commit": None, "dirty": None, "why": "git is not installed"}


def test_a_broken_checkout_gives_gits_own_reason(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / ".git").write_text("nonsense")
    found = checkout(tmp_path)
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["why"].startswith("git: ")


def test_a_git_that_hangs_is_given_up(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "_GIT_TIMEOUT_S", 0.2)
    why = checkout(repository)["why"]
    assert why.startswith("git did not answer within ")
    assert str(repository) not in why, "records are published"


def test_published_records_have_no_local_paths(tmp_path: Path) -> None:
    root = Path(provenance.__file__).parents[1]
    text = f'File "{root}/harness/store/store.py", line 3; {sys.prefix}/lib/x.py; {json.__file__}; {tmp_path}/job.json'
    told = provenance.redacted(text, job=tmp_path)
    assert not [place for place in (str(root), sys.prefix, sys.base_prefix, str(tmp_path)) if place in told]
    assert 'File "<checkout>/harness/store/store.py", line 3; <environment>/lib/x.py' in told
    assert told.endswith("<job>/job.json")
    assert "json/__init__.py" in told


def test_secrets_and_names_are_left_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.socket, "gethostname", lambda: "box-seventeen")
    planted = {"MY_API_KEY": "planted-0123456789", "DB_PASSWORD": "open-sesame-77", "USER": "marjorie"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true-true-true")
    hub = "hf_" + "aB3" * 11
    text = (
        f"401 for {hub} planted-0123456789 at https://me:open-sesame-77@hub/x by marjorie@box-seventeen; true-true-true"
    )
    assert provenance.redacted(text) == (
        "401 for <secret> <secret> at https://<secret>@hub/x by <user>@<host>; true-true-true"
    )
    assert provenance.redacted("lora of marjories, hf_hub") == "lora of marjories, hf_hub"


H100 = {"name": "NVIDIA H100", "driver": "580", "power_limit_w": 700.0}


def on(gpus: object):
    return make_record(
        1, cell=cell() | {"hardware": {"device": "cuda"}}, environment={"cpu": {"model": "x"}, "gpus": gpus}
    )


def test_the_machine_names_its_gpus_and_power_limits() -> None:
    assert machine(on([H100]))["gpus"] == ["NVIDIA H100, 700.0 W"]
    assert place(on([H100])) != place(on([{**H100, "power_limit_w": 350.0}]))


def test_gpus_known_by_uuid_alone_are_read() -> None:
    assert EnvironmentView({"gpus": ["GPU-1"]}).gpus[0]["uuid"] == "GPU-1"
    assert machine(on(["GPU-1"]))["gpus"] == ["GPU not described, power limit not stated"]
