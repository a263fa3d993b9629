"""peft-matrix: sweeps of models x fine-tuning methods x quantization x hardware, with records and leaderboards.

.. code-block:: python

    import peft_matrix as pm

    sweep = pm.sweep(models=["builtin:nano"], methods=["none", "lora"], tasks=["strings-copy"])
    pm.plan(sweep)
    run = pm.run(sweep)
    run.frame()
    run.board().save("out")

This package is the only import to rely on. ``harness``, ``tasks``, ``runners`` and ``reports`` are its parts and may
change. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft_matrix.own_packages import load_own_packages

load_own_packages()

if TYPE_CHECKING:
    from harness.errors import UserError
    from harness.spec import LoadedSweep
    from peft_matrix.analysis import (
        accept_baseline,
        bisect,
        compare,
        false_alarm_rate,
        nightly,
        regressions,
        reproduce,
        reproduce_plan,
    )
    from peft_matrix.api import (
        check_board,
        columns,
        export,
        export_cell,
        fetch,
        follow_logs,
        garbage,
        import_results,
        init,
        load,
        load_sweep,
        logs,
        merge,
        other_settings,
        pack,
        plan,
        publish,
        push,
        query,
        record,
        run,
        running,
        site,
        status,
        sweep,
        unpack,
        update_index,
        verify_fetched,
        verify_packed,
    )
    from peft_matrix.keys import schema
    from peft_matrix.listings import (
        compat,
        compat_page,
        create_environment,
        doctor,
        environments,
        methods,
        models,
        objectives,
        quantizers,
        recipes,
        sweeps,
        tasks,
        tasks_page,
    )
    from peft_matrix.results import Planned, Results, Rows, Run

_MODULES = {
    "harness.errors": ("UserError",),
    "harness.spec": ("LoadedSweep",),
    "peft_matrix.analysis": (
        "accept_baseline",
        "bisect",
        "compare",
        "false_alarm_rate",
        "nightly",
        "regressions",
        "reproduce",
        "reproduce_plan",
    ),
    "peft_matrix.api": (
        "check_board",
        "columns",
        "export",
        "export_cell",
        "fetch",
        "follow_logs",
        "garbage",
        "import_results",
        "init",
        "load",
        "load_sweep",
        "logs",
        "merge",
        "other_settings",
        "pack",
        "plan",
        "publish",
        "push",
        "query",
        "record",
        "run",
        "running",
        "site",
        "status",
        "sweep",
        "unpack",
        "update_index",
        "verify_fetched",
        "verify_packed",
    ),
    "peft_matrix.keys": ("schema",),
    "peft_matrix.listings": (
        "compat",
        "compat_page",
        "create_environment",
        "doctor",
        "environments",
        "methods",
        "models",
        "objectives",
        "quantizers",
        "recipes",
        "sweeps",
        "tasks",
        "tasks_page",
    ),
    "peft_matrix.results": ("Planned", "Results", "Rows", "Run"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "LoadedSweep",
    "Planned",
    "Results",
    "Rows",
    "Run",
    "UserError",
    "__version__",
    "accept_baseline",
    "bisect",
    "check_board",
    "columns",
    "compare",
    "compat",
    "compat_page",
    "create_environment",
    "doctor",
    "environments",
    "export",
    "export_cell",
    "false_alarm_rate",
    "fetch",
    "follow_logs",
    "garbage",
    "import_results",
    "init",
    "load",
    "load_sweep",
    "logs",
    "merge",
    "methods",
    "models",
    "nightly",
    "objectives",
    "other_settings",
    "pack",
    "plan",
    "publish",
    "push",
    "quantizers",
    "query",
    "recipes",
    "record",
    "regressions",
    "reproduce",
    "reproduce_plan",
    "run",
    "running",
    "schema",
    "site",
    "status",
    "sweep",
    "sweeps",
    "tasks",
    "tasks_page",
    "unpack",
    "update_index",
    "verify_fetched",
    "verify_packed",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("peft-matrix")
    if name not in _WHERE:
        raise AttributeError(f"module 'peft_matrix' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
