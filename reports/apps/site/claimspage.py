"""The claims page: what ``peft-matrix reproduce --json`` said, shown and not judged again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from reports.apps.reproduction.report import count_kinds
from reports.apps.site.text import line


def read_claims(path: Path | None) -> dict[str, object] | None:
    """The report as the page shows it, None if none was given.

    Raises:
        UserError: the file is no such report.
    """
    if path is None:
        return None
    fix = "Write it with: peft-matrix reproduce --check --json > claims.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"not a readable report of claims ({error})", where=str(path), fix=fix) from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"claim", "paper", "verdict"} <= set(row) for row in rows
    ):
        raise UserError(
            "not a report of claims: a list of rows with claim, paper and verdict", where=str(path), fix=fix
        )
    shown = [_row(row) for row in rows]
    papers: dict[str, list[dict[str, object]]] = {}
    for row in shown:
        papers.setdefault(row["paper"], []).append(row)
    counts = [
        (line(kind, 40), line(verdict, 60), number)
        for kind, found in count_kinds(rows).items()
        for verdict, number in found
    ]
    verdicts = sorted({row["verdict"] for row in shown})
    return {"total": len(shown), "verdicts": verdicts, "counts": counts, "papers": sorted(papers.items())}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    proxies = [proxy for proxy in row.get("proxies") or () if isinstance(proxy, Mapping)]
    return {
        "claim": line(row["claim"], 80),
        "paper": line(row["paper"], 200),
        "verdict": line(row["verdict"], 40).replace("_", " "),
        "kind": line(row.get("kind", "kind not stated"), 40),
        "statement": line(row.get("statement", ""), 600),
        "sentence": line(row.get("sentence", ""), 1500),
        "flags": ", ".join(line(flag, 60) for flag in row.get("flags") or ()),
        "proxies": [
            f"{line(p.get('setup', ''), 40)}: {line(p.get('verdict', ''), 60).removeprefix('proxy_').replace('_', ' ')}"
            for p in proxies
        ],
    }
