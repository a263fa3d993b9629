"""The worker reads the bytes of the model itself and refuses a cell whose plan meant other ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.digests import digest, digest_file
from harness.errors import CheckFailed
from harness.file_digests import FileDigests, stamp_of
from harness.models import files, gguf_files, hub, sources
from runners.worker.context import Context

CHECK = "model-files"


def verify(ctx: Context) -> None:
    """Record which bytes were loaded (``weights_sha256``, ``model_commit``) and compare them with the plan's.

    Called when the base has been loaded. No digest of an earlier process is believed here.

    Raises:
        CheckFailed: ``model-files``: the files, or the commit of the Hub, are not those of the cell's key.
    """
    planned, scheme = ctx.job.cell["model"]["revision"], sources.scheme_of(ctx.job.model)
    repository = sources.hub_repository(ctx.job.model)
    digests = FileDigests()
    if repository is not None:
        ctx.facts["model_commit"] = commit = _commit(ctx, repository, planned)
        folder = hub.snapshot(repository, commit)
        ctx.facts["weights_sha256"] = weights_digest(folder) if folder is not None else None
        return
    if scheme in ("path", "package"):
        found = files.source_files(Path(ctx.path))
    elif scheme == "gguf" and (file := gguf_files.local_file(ctx.job.model)) is not None:
        found = {file.name: file}
    else:  # made on this machine from a recipe: which bytes came of it is on record
        ctx.facts["weights_sha256"] = weights_digest(Path(ctx.path))
        return
    revision = files.files_digest(found, digests)
    ctx.facts["weights_sha256"] = files.weights_sha256(found, digests)
    ctx.model_stamps = {path: (stamp_of(path), digests.of(path)) for path in found.values()}
    if revision != planned:
        raise CheckFailed(
            CHECK,
            f"the files of the model changed after the cell was planned (their digest is {revision}, the plan's is "
            f"{planned}); run the sweep again",
        )


def verify_unchanged(ctx: Context) -> None:
    """Later stages read the base again: it must still be the one that was verified.

    A file whose times changed is read again: a hard link to it, which installers make, changes ``ctime`` alone.

    Raises:
        CheckFailed: ``model-files``: a file was replaced or removed while the cell ran.
    """
    for path, (stamp, sha256) in ctx.model_stamps.items():
        if not path.is_file() or (stamp_of(path) != stamp and digest_file(path) != sha256):
            raise CheckFailed(CHECK, f"{path.name} of the model changed while the cell ran; run the sweep again")


def _commit(ctx: Context, repository: str, planned: Any) -> str:
    """The commit that was loaded.

    Raises:
        CheckFailed: it is not the planned one, or the plan could not name one.
    """
    loaded = getattr(ctx.model.config, "_commit_hash", None)
    if not hub.is_commit(planned):
        raise CheckFailed(
            CHECK,
            f"the plan could not find out which commit of {repository} was meant, so the key holds none. Pin it in "
            f"the sweep: revision: {loaded or 'COMMIT'}",
        )
    if loaded is not None and loaded != planned:
        raise CheckFailed(CHECK, f"commit {loaded} of {repository} was loaded, and {planned} was planned")
    return str(planned)


def weights_digest(folder: Path) -> str | None:
    """Digest over the safetensors of a folder of this machine; None where it has none."""
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return digest({f.name: digest_file(f) for f in found}) if found else None
