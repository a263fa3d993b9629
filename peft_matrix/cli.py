"""Entry point of the command line. The commands are in :mod:`peft_matrix.commands`.

Heavy imports are inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys

import typer

from harness.errors import EXIT_BAD_INPUT, UserError
from peft_matrix.commands import GROUPS, VERBS

app = typer.Typer(
    name="peft-matrix",
    help="Sweep models x fine-tuning methods x quantization x hardware; record accuracy, memory, time and energy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in VERBS:
    app.command(verb.__name__.rstrip("_").replace("_", "-"))(verb)  # import_ is a keyword without its tail
for group in GROUPS:
    app.add_typer(group)


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, Ctrl-C is exit code 130."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        typer.echo(f"peft-matrix: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            typer.echo(f"peft-matrix: {error.format_message()} See 'peft-matrix --help'.", err=True)
            sys.exit(EXIT_BAD_INPUT)
        raise
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
