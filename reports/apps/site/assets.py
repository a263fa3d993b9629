"""The two kept libraries of the page, taken from their installed packages when a site is built.

This repository does not contain them: DataTables (the grid) is copied from ``itables``, plotly.js from ``plotly``; both
are MIT and pinned like every other dependency (docs/decisions/0006-site-assets.md).
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.resources import files

from harness.errors import UserError

_EXPORT = re.compile(r"export\{([^{}]*)\};")
_DEFAULT = re.compile(r"(?:^|,)\s*([\w$]+) as default\b")


def libraries() -> dict[str, bytes]:
    """File name below ``assets/`` to content: scripts, the grid's style sheet and the licences.

    Raises:
        UserError: a package is not installed, or holds something else than expected.
    """
    return {
        "plotly.js": _resource("plotly", "package_data/plotly.min.js"),
        "datatables.js": as_classic_script(_resource("itables", "html/dt_bundle.js").decode()).encode(),
        "datatables.css": _resource("itables", "html/dt_bundle.css"),
        "plotly-LICENSE.txt": _licence("plotly"),
        "itables-LICENSE.txt": _licence("itables"),
    }


def as_classic_script(module: str) -> str:
    """An ES module without imports as a classic script that sets ``globalThis.DataTable``.

    A page opened from ``file://`` may not load modules, since its origin is opaque.

    Raises:
        UserError: the module does not end in one export list with a default.
    """
    exports = _EXPORT.findall(module)
    default = _DEFAULT.search(exports[0]) if len(exports) == 1 else None
    if default is None:
        raise UserError(
            "its bundle of DataTables is not the module that was expected",
            where="package itables",
            fix="Install the version that constraints.txt names.",
        )
    name = default[1]
    body = _EXPORT.sub(lambda _: f"globalThis.DataTable={name};", module)
    return f'(()=>{{"use strict";\n{body}\n}})();\n'


def _resource(package: str, path: str) -> bytes:
    try:
        return files(package).joinpath(path).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"the page needs {path} of the package {package}, which is not there",
            fix=f"Install it: pip install {package}",
        ) from error


def _licence(package: str) -> bytes:
    for path in metadata.files(package) or ():
        if path.name.startswith("LICENSE") and "dist-info" in str(path):
            return path.read_binary()
    raise UserError("its licence text is not in its package", where=f"package {package}")
