"""Entry point of the command line. The commands are in :mod:`peft_matrix.commands`.

Heavy imports are inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import EXIT_BAD_INPUT, UserError
from peft_matrix.commands import GROUPS, VERBS

PANELS = {
    "Sweeps": ("init", "plan", "run", "status", "show", "logs", "fetch", "export", "push"),
    "Boards and pages": ("board", "site", "check", "import", "publish"),
    "Comparison": ("compare", "reproduce", "regressions", "nightly", "bisect"),
    "Lists": ("methods", "objectives", "recipes", "quantizers", "tasks", "models", "compat", "schema"),
    "Set-up and records": ("doctor", "env", "results"),
}
"""Groups of commands in ``--help``, in this order."""
EPILOG = (
    "Exit codes: 0 done; 1 a cell failed, a metric got worse or a board has smells; 2 the input is wrong; 130 stopped. "
    "An option overrides its environment variable (PEFT_MATRIX_RESULTS, PEFT_MATRIX_DATA, PEFT_MATRIX_CACHE), that the "
    "sweep's own key, and that the defaults in the workspace's peft-matrix.yaml."
)

app = typer.Typer(
    name="peft-matrix",
    help="Sweep models x fine-tuning methods x quantization x hardware; record accuracy, memory, time and energy.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"peft-matrix {metadata.version('peft-matrix')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


def _add_commands() -> None:
    """Add every command to its panel of the help."""
    verbs = {verb.__name__.rstrip("_").replace("_", "-"): verb for verb in VERBS}  # import_ is a keyword without "_"
    groups = {str(group.info.name): group for group in GROUPS}
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    for name in sorted({*verbs, *groups}, key=lambda name: list(panels).index(name) if name in panels else len(panels)):
        if name in verbs:
            app.command(name, rich_help_panel=panels.get(name, "More"))(verbs[name])
        else:
            app.add_typer(groups[name], rich_help_panel=panels.get(name, "More"))


_add_commands()


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, Ctrl-C is exit code 130."""
    guard_streams()
    try:
        code = app(standalone_mode=False, prog_name="peft-matrix")
        sys.stdout.flush()
    except UserError as error:
        typer.echo(f"peft-matrix: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that is gone or may not be read
        typer.echo(f"peft-matrix: {_of_system(error)}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            called = context.command_path if context is not None else "peft-matrix"
            if message := error.format_message():  # empty where a call without arguments has printed the help
                typer.echo(f"peft-matrix: {message.rstrip('.')}. See '{called} --help'.", err=True)
            sys.exit(EXIT_BAD_INPUT)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _of_system(error: OSError) -> UserError:
    """An error of the system with what to do about it."""
    from runners.workspace import Workspace

    place, cache = str(error.filename or ""), ""
    with contextlib.suppress(UserError, OSError):
        cache = str(Workspace.discover().cache)
    fix = ""
    if place and cache and (Path(cache).is_relative_to(place) or Path(place).is_relative_to(cache)):
        fix = f"The cache is {cache}: make it writable, or name another folder, PEFT_MATRIX_CACHE=DIR."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "Free space there, then run the same command again."
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "Make it writable, or name another folder."
    return UserError(error.strerror or str(error), where=place, fix=fix)


_SEQUENCE = re.compile(
    r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|.)?", re.DOTALL
)
_ALLOWED = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[0-9]*[AB]|2K)")
"""Colours, and the moves of a progress display."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


def harmless(text: str, *, styled: bool = False) -> str:
    """``text`` without control characters and escape sequences.

    Args:
        styled: keep colours and the moves of a progress display, which this program writes to terminals itself.
    """
    kept = _SEQUENCE.sub(lambda m: m[0] if styled and _ALLOWED.fullmatch(m[0]) else "", text)
    return _CONTROL.sub("", kept)


class _Guarded:
    """A text stream whose writes are made harmless; everything else is the stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write without control sequences; returns the length of what was given."""
        self._stream.write(harmless(text, styled=self._stream.isatty()))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Let standard output and error replace characters that their encoding lacks, and drop control sequences."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        if stream is not None and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))


if __name__ == "__main__":
    main()
