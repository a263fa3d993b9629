"""The command line on terminals, pipes and accounts that are not the developer's."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from peft_matrix import cli
from peft_matrix.cli import harmless
from peft_matrix.console import print_cells

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é – 😀\n\ttab", "plain é – 😀\n\ttab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("a\x1b[31mred\x1b[0mb", "aredb"),
        ("a\x9b31mb\x07\x08c", "a31mbc"),
        ("a\x1bPq#0\x1b\\b\x1bcc", "abc"),
        ("open\x1b", "open"),
    ],
)
def test_text_of_others_moves_no_terminal(text: str, shown: str) -> None:
    assert harmless(text) == shown
    assert "\x1b]" not in harmless(text, styled=True)
    assert harmless("\x1b[1;32mgo\x1b[0m\x1b[2K", styled=True) == "\x1b[1;32mgo\x1b[0m\x1b[2K"
    assert harmless("\x1b[2J", styled=True) == ""


def command(*arguments: str, **environ: str | None) -> subprocess.CompletedProcess[bytes]:
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        [sys.executable, "-m", "peft_matrix.cli", *arguments],
        env={k: v for k, v in changed.items() if v is not None},
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("width", "lines"), [(60, ["name    note", "a       one two", "longer"]), (11, ["name: a", "  note: one"])]
)
def test_a_table_too_wide_for_the_console_is_printed_by_row(width: int, lines: list[str]) -> None:
    out = io.StringIO()
    print_cells(["name", "note"], [["a", "one two"], ["longer", ""]], Console(file=out, width=width))
    printed = [line.rstrip() for line in out.getvalue().splitlines()]
    assert printed[: len(lines)] == lines


def test_a_stream_that_is_not_utf8_is_no_error() -> None:
    done = command("methods", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"lora" in done.stdout


def test_a_name_with_escapes_is_printed_without_them() -> None:
    done = command("plan", "\x1b]0;owned\x07sweep")
    assert done.returncode == 2
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "peft_matrix.cli", "methods"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False,
        )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"No space left" in done.stderr
    assert done.returncode == 2


def test_a_deleted_current_folder_is_one_sentence(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && "
    script += f"exec {sys.executable} -P -m peft_matrix.cli plan --list"
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_an_account_without_a_home_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.errors import UserError
    from runners import workspace

    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PEFT_MATRIX_CACHE", raising=False)
    with pytest.raises(UserError, match="PEFT_MATRIX_CACHE=DIR"):
        workspace.Workspace.discover()
    monkeypatch.setenv("PEFT_MATRIX_CACHE", "/somewhere")
    assert str(workspace.Workspace.discover().cache) == "/somewhere"


@pytest.mark.parametrize(
    ("number", "place", "fix"),
    [
        (errno.EROFS, "/home/me/.cache", "PEFT_MATRIX_CACHE=DIR"),  # a home that is read-only, or not there
        (errno.ENOTDIR, "/home/me/.cache/peft-matrix/jobs/1", "PEFT_MATRIX_CACHE=DIR"),
        (errno.EACCES, "/srv/boards", "name another folder"),
        (errno.ENOSPC, "/srv/boards", "Free space there"),
    ],
)
def test_an_error_of_the_system_says_what_to_do(
    number: int, place: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(**_: object) -> None:
        raise OSError(number, os.strerror(number), place)

    monkeypatch.setenv("PEFT_MATRIX_CACHE", "/home/me/.cache/peft-matrix")
    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith(f"peft-matrix: {place}: {os.strerror(number)}. ")
    assert fix in said


def test_a_home_that_cannot_be_made_names_the_variable() -> None:
    names = {name: value for name, value in os.environ.items() if name not in ("PEFT_MATRIX_CACHE", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "peft_matrix.cli", "env", "create", "llamacpp"],
        env={**names, "HOME": "/proc/nobody"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "name another folder, PEFT_MATRIX_CACHE=DIR" in done.stderr


def test_a_site_or_an_export_in_a_wrong_place_names_the_option(tmp_path: Path) -> None:
    from harness.errors import UserError
    from harness.store.store import Store
    from reports.apps import export
    from reports.apps.site import builder
    from tests.harness.examples import make_record

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out DIR"):
        builder._replace(tmp_path / "file" / "site", {"index.html": b""}, {})
    Store(tmp_path / "store").append(make_record(0))
    with pytest.raises(UserError, match="--to FILE"):
        export.export(Store(tmp_path / "store"), tmp_path / "file" / "all.zip")
