"""Origin of a number: versions, commit, processor, GPU. Everything is read, nothing is imported or set."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.digests import digest
from harness.hardware import cgroup_limits, core_count, cpu_model, find_gpus

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "torchao",
    "optimum-quanto",
    "hqq",
    "pytorch-optimizer",
    "lm-eval",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "peft-matrix",
)
"""Packages whose version can change a number."""

SIDE_PACKAGES = ("gptqmodel", "optimum", "llmcompressor", "compressed-tensors")
"""Further ones, of side environments. In :data:`PACKAGES` they would make every record made without them stale."""

VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "BITSANDBYTES_NOWELCOME",
    "BNB_CUDA_VERSION",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "CUDNN_CONV_WSCAP_DBG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "KMP_AFFINITY",
    "MALLOC_ARENA_MAX",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE",
    "TORCHINDUCTOR_FX_GRAPH_CACHE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_COMPILE_DISABLE",
)
"""Environment variables by which libraries choose other kernels, other rounding or other memory.

Numbers of threads are not among them: a worker sets its own, which is part of the cell. None of these holds a secret
or a path of a machine.
"""

_GIT_TIMEOUT_S = 5.0
_SECRET_NAME = re.compile(r"TOKEN(?!I)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_SECRET_LENGTH = 8
"""Shorter values are flags, and replacing them would spoil ordinary words."""
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[opsru]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}|"
    r"xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
_NAME_LENGTH = 4
_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_SHARED_NAMES = frozenset({"", "root", "user", "localhost", "runner", "ubuntu", "admin"})
"""Names of accounts and machines that tell nothing about either."""


def packages(further: Sequence[str] = ()) -> dict[str, str | None]:
    """Installed versions of :data:`PACKAGES` and of ``further`` ones; None for packages that are not installed."""
    return {name: _version(name) for name in (*PACKAGES, *further)}


def environment(further: Sequence[str] = ()) -> dict[str, Any]:
    """The environment of this process as plain JSON, stored in every record.

    The host is recorded as a digest, so that records of different machines can be distinguished without publishing its
    name. ``gpus_missing`` is the typed reason where there is no GPU.

    Args:
        further: packages whose versions are recorded in addition to those of :data:`PACKAGES`.
    """
    import psutil

    gpus, why, detail = find_gpus()
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "packages": packages(further),
        "harness": checkout(Path(__file__).parents[1]),
        "cpu": {
            "model": cpu_model(),
            "cores": core_count(),
            "physical_cores": psutil.cpu_count(logical=False),
        },
        "memory_bytes": min([psutil.virtual_memory().total, *cgroup_limits()]),
        "host": host(),
        "gpus": [asdict(gpu) for gpu in gpus],
        "gpus_missing": why,
        "gpus_missing_detail": detail,
        **({"variables": found} if (found := variables()) else {}),
    }


def variables() -> dict[str, str]:
    """Those of :data:`VARIABLES` that are set in this process."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def host() -> str:
    """This machine's name as a digest."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def fingerprint(environment: Mapping[str, Any]) -> str:
    """Digest of the parts of an environment that can change a number.

    In it: package versions, Python's minor version, the processor's model, each GPU's name and driver, and environment
    variables that choose other kernels, where any is set: other kernels, other rounding, other speed. A record whose
    fingerprint differs from today's is stale.
    Not in it, because they change while the numbers do not: the host's name, the time, how many GPUs of a
    kind there are, and the harness's own commit (a change of the protocol raises its version, which is part
    of the cell's key; otherwise every commit would make every record stale).
    """
    return digest(
        {
            "packages": dict(environment["packages"]),
            "python": ".".join(str(environment["python"]).split(".")[:2]),
            "cpu": environment["cpu"]["model"],
            "gpus": sorted({f"{gpu['name']} {gpu['driver']}" for gpu in environment["gpus"]}),
            **({"variables": dict(environment["variables"])} if environment.get("variables") else {}),
        }
    )


def redacted(text: str, *, job: Path | None = None) -> str:
    """``text`` (a log, a message) without secrets and places of this machine, since records are published.

    The job's folder, the checkout, the virtual environment, Python's own library and the home folder become
    ``<job>``, ``<checkout>``, ``<environment>``, ``<python>`` and ``~``; what follows them stays, so that a
    traceback can still be read. Values of environment variables that are named like secrets, access tokens of known
    forms, and passwords in URLs become ``<secret>``; names of the account and the machine ``<user>`` and ``<host>``.
    """
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_LENGTH:
            text = text.replace(value, "<secret>")
    text = _PASSWORD.sub("://<secret>@", _TOKEN.sub("<secret>", text))
    places = {
        **({str(job): "<job>", str(job.resolve()): "<job>"} if job is not None else {}),
        sys.prefix: "<environment>",
        str(Path(__file__).parents[1]): "<checkout>",
        sys.base_prefix: "<python>",
        os.path.expanduser("~"): "~",  # itself where the account has no home
    }
    for place, name in sorted(places.items(), key=lambda item: -len(item[0])):  # the inner ones first
        if len(place) > 1:  # a home of "/" names nothing
            text = text.replace(place, name)
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")} - {"", *_SHARED_NAMES}
    names = {**dict.fromkeys(users, "<user>"), socket.gethostname(): "<host>"}
    for own, shown in names.items():
        if own not in _SHARED_NAMES and len(own) >= _NAME_LENGTH:
            text = re.sub(rf"(?<![\w-]){re.escape(own)}(?![\w-])", shown, text)
    return text


def checkout(root: Path) -> dict[str, object]:
    """Commit of the checkout at ``root`` and whether tracked files differ from it.

    Returns:
        ``commit`` and ``dirty``; both None, with ``why`` in words, where ``root`` is no checkout or git fails.
    """
    if not (root / ".git").exists():  # an installed package may be inside another checkout
        return {"commit": None, "dirty": None, "why": "not a git checkout"}
    git = shutil.which("git")
    if git is None:
        return {"commit": None, "dirty": None, "why": "git is not installed"}
    try:
        commit = _git(git, root, "rev-parse", "HEAD")
        changes = _git(git, root, "status", "--porcelain", "--untracked-files=no")
    except subprocess.CalledProcessError as error:
        return {"commit": None, "dirty": None, "why": f"git: {error.stderr.strip() or error}"}
    except subprocess.TimeoutExpired as error:  # whose own words hold the command, and so a path of this machine
        return {"commit": None, "dirty": None, "why": f"git did not answer within {error.timeout:g} s"}
    except OSError as error:
        return {"commit": None, "dirty": None, "why": f"git: {error.strerror}"}
    return {"commit": commit, "dirty": bool(changes), "why": ""}


def _git(git: str, root: Path, *arguments: str) -> str:
    # GIT_DIR and its like would point at another repository; status must not write to the index
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        [git, "--no-optional-locks", "-C", str(root), *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=_GIT_TIMEOUT_S,
        check=True,
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
