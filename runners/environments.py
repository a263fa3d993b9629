"""Side environments: separate virtual environments for back ends whose pins conflict with ours.

Each is described by committed files in ``runners/envs/``: ``NAME.txt`` (what it needs, a worker's own needs among it),
``NAME.constraints.txt`` (the exact version of everything in it) and, where a package's declared pins are narrower than
what it runs on, ``NAME.no-deps.txt`` (installed afterwards, without dependencies). A cell that needs one is run by its
interpreter through the worker contract of every cell: a job file in, a record out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import provenance
from harness.errors import UserError, did_you_mean
from harness.quantizers.base import Quantizer
from runners.worker.import_path import safe_environment

ROOT = Path(__file__).parents[1]
FILES = Path(__file__).parent / "envs"
CONSTRAINTS, NO_DEPS = ".constraints", ".no-deps"
READY = "ready.json"
"""Written last: the versions that :func:`harness.provenance.packages` finds in the environment."""


def names() -> list[str]:
    """The environments there are."""
    return sorted(p.stem for p in FILES.glob("*.txt") if not p.stem.endswith((CONSTRAINTS, NO_DEPS)))


def digest(name: str) -> str:
    """SHA-256 of an environment's files: the identity of what is installed in it."""
    files = [FILES / f"{name}{part}.txt" for part in ("", CONSTRAINTS, NO_DEPS)]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files if f.is_file())).hexdigest()


def folder(name: str, cache: Path) -> Path:
    """Folder in which an environment is built; another folder as soon as one of its files changes."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "environments" / f"{name}-py{python}-{digest(name)[:8]}"


def interpreter(name: str, cache: Path) -> Path | None:
    """The environment's Python, or None if it has not been built (to its end)."""
    built = folder(name, cache)
    return built / "bin" / "python" if (built / READY).is_file() else None


def fingerprints(environment: Mapping[str, object], cache: Path) -> dict[str, str]:
    """Fingerprint of a record made in each existing environment, on the machine that ``environment`` describes.

    Args:
        environment: our own, as :func:`harness.provenance.environment` gives it.
    """
    found = {}
    for name in names():
        ready = folder(name, cache) / READY
        if ready.is_file():
            packages = json.loads(ready.read_text(encoding="utf-8"))
            found[name] = provenance.fingerprint({**environment, "packages": packages})
    return found


def why_not(quantizer: type[Quantizer], device: str, moment: str, cache: Path) -> str | None:
    """Reason why a back end cannot be used here: refused, not installed, or its side environment is not built."""
    reason = quantizer.check(device, moment) or quantizer.missing(device)
    needed = quantizer.declaration.environment or quantizer.declaration.tool_environment
    if reason is None and needed and interpreter(needed, cache) is None:
        reason = f"{quantizer.declaration.name} runs in the environment {needed!r}: peft-matrix env create {needed}"
    return reason


def create(name: str, cache: Path, say: Callable[[str], None]) -> Path:
    """Build an environment (nothing to do if it exists) and return its interpreter.

    Args:
        say: receives progress messages, a line at a time.

    Raises:
        UserError: no such environment, or a package could not be installed.
    """
    if name not in names():
        raise UserError(f"unknown environment {name!r}", fix=did_you_mean(name, names()))
    found = interpreter(name, cache)
    if found is not None:
        say(f"{name} is ready: {found}")
        return found
    target = folder(name, cache)
    shutil.rmtree(target, ignore_errors=True)  # what an earlier attempt left
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"Making {target} ...")
    _call([sys.executable, "-m", "venv", str(target)], name)
    python = target / "bin" / "python"
    installer = _installer(python)
    say("Installing; this takes minutes, and the CUDA build of torch is several GB where there is one ...")
    pins = ["-c", str(FILES / f"{name}{CONSTRAINTS}.txt")]
    _call([*installer, *pins, "-r", str(FILES / f"{name}.txt")], name)
    loose = FILES / f"{name}{NO_DEPS}.txt"
    if loose.is_file():
        _call([*installer, "--no-deps", "-r", str(loose)], name)
    code = "import json; from harness import provenance as p; print(json.dumps(p.packages(p.SIDE_PACKAGES)))"
    (target / READY).write_text(_call([str(python), "-c", code], name), encoding="utf-8")
    say(f"{name} is ready: {python}")
    return python


def install(target: Path, lock: str, *, name: str) -> None:
    """Make a virtual environment of exactly the packages of a lock, resolving nothing.

    Args:
        lock: lines ``name==version``, every dependency included.
        name: what messages call it.

    Raises:
        UserError: a package could not be installed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    python = target / "bin" / "python"
    uv = _uv()  # makes an environment in a tenth of the time of venv, since it needs no pip inside
    _call(
        [uv, "venv", "-q", "--python", sys.executable, str(target)]
        if uv
        else [sys.executable, "-m", "venv", str(target)],
        name,
    )
    wanted = target / "lock.txt"
    wanted.write_text(lock, encoding="utf-8")
    if lock:
        _call([*_installer(python), "--no-deps", "-r", str(wanted)], name)


def rows(cache: Path) -> list[dict[str, Any]]:
    """One row per environment: what for, which quantizers, built or not."""
    from harness.quantizers.catalog import QUANTIZERS

    found = []
    for name in names():
        first = (FILES / f"{name}.txt").read_text(encoding="utf-8").splitlines()[0]
        built = interpreter(name, cache)
        found.append(
            {
                "environment": name,
                "for": first.lstrip("# "),
                "quantizers": [q for q in QUANTIZERS if name in _asked(QUANTIZERS.get(q))],
                "built": str(built) if built else f"no: peft-matrix env create {name}",
            }
        )
    return found


def interpreters(cache: Path) -> dict[str, str]:
    """The environments that are built, and their interpreters."""
    return {name: str(found) for name in names() if (found := interpreter(name, cache)) is not None}


def _asked(quantizer: type[Quantizer]) -> set[str]:
    return {quantizer.declaration.environment, quantizer.declaration.tool_environment} - {""}


def _installer(python: Path) -> list[str]:
    """uv where there is one, else the environment's pip."""
    uv = _uv()
    return [uv, "pip", "install", "-q", "--python", str(python)] if uv else [str(python), "-m", "pip", "install", "-q"]


def _uv() -> str | None:
    """uv next to our interpreter or on the path."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else shutil.which("uv")


def _call(command: list[str], name: str) -> str:
    """Run one step of the building; its standard output."""
    environ = safe_environment({k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, root=ROOT)
    links = environ.get("PIP_FIND_LINKS") or _pip_find_links()
    if links and "UV_FIND_LINKS" not in environ:
        environ["UV_FIND_LINKS"] = links  # uv does not read pip's own setting
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    if done.returncode:
        tail = " ".join(done.stderr.strip().splitlines()[-3:])
        raise UserError(
            f"the environment {name!r} could not be built: {tail}",
            where=" ".join(command[:4]),
            fix=f"Is a package index reachable? The files are runners/envs/{name}*.txt.",
        )
    return done.stdout


def _pip_find_links() -> str:
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], check=False, capture_output=True, text=True
    )
    return asked.stdout.strip()
