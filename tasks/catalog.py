"""The task library on a page (``docs/tasks.md``)."""

from __future__ import annotations

from tasks.task import SPLITS, SplitRule, TaskDefinition, find_tasks, load_task

HEAD = """# Tasks

What is in [tasks/definitions](../tasks/definitions), one YAML file each. Rows come from a data root
(`--data-root`, `<data root>/<folder>/<split>.jsonl`) where it has them, else from the Hub. A workspace's tasks are
files of the same kind (`peft-matrix init`). Any task of lm-eval can be scored in addition to these:
[accuracy](accuracy.md).

**Unpinned** means that no commit of the data set is named, so that its rows may change under the same name. `plan`
says so before such a task runs from the Hub, the record keeps it, and the board that shows it says it too. Rows of a
data root are pinned by the digest of their file, independent of the entry here.
"""


def to_markdown() -> str:
    """The page: a table of all built-in tasks, and what people should know of each."""
    tasks = [load_task(name, []).definition for name in sorted(find_tasks([]))]
    lines = [
        HEAD,
        f"{len(tasks)} tasks, {sum(not d.unpinned for d in tasks)} of them pinned or generated.",
        "",
        "| task | kind | judged by | rows from | revision | licence | version |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for d in tasks:
        cells = (f"`{d.name}`", d.kind, ", ".join(d.metrics), _origin(d), _revision(d), d.licence, str(d.version))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    for d in tasks:
        lines += ["", f"## {d.name}", "", d.summary, "", f"- splits: {_splits(d)}"]
        lines += [f"- prompt: `{_shown(d.prompt)}`"] if d.prompt else []
        lines += [f"- retained skills: {', '.join(d.retain)}"] if d.retain else []
        lines += [f"- {d.citation}"] if d.citation else []
        lines += [f"- unpinned: `{name}`: {why}" for name, why in d.unpinned.items()]
        lines += ["", d.notes.strip()] if d.notes else []
    return "\n".join(lines) + "\n"


def _hubs(d: TaskDefinition) -> list[str]:
    sources = [d.source, *(rule.source for rule in d.splits.values() if rule.source)]
    return list(dict.fromkeys(s.hub.id for s in sources if s.hub))


def _origin(d: TaskDefinition) -> str:
    if d.source.generator:
        return f"generator `{d.source.generator}`"
    folder = f"data root `{d.source.data_root}`" if d.source.data_root else ""
    return "; ".join(part for part in (folder, *_hubs(d)) if part)


def _revision(d: TaskDefinition) -> str:
    if d.source.generator:
        return "made here"
    sources = [d.source, *(rule.source for rule in d.splits.values() if rule.source)]
    marks = [str(s.hub.revision)[:8] if s.hub.pinned else "unpinned" for s in sources if s.hub]
    return ", ".join(marks) or "no Hub"


def _splits(d: TaskDefinition) -> str:
    return "; ".join(f"{name}: {_rule(d.splits[name])}" for name in SPLITS if name in d.splits)


def _rule(rule: SplitRule) -> str:
    of = f" of {rule.source.hub.id}" if rule.source and rule.source.hub else ""
    if rule.hold_out:
        return f"{rule.hold_out:,} rows held out of `{rule.from_}`{of}"
    return f"`{rule.from_}`{of}" + (f", {rule.max_rows:,} rows" if rule.max_rows else "")


def _shown(text: str) -> str:
    return text.replace("\n", "\\n").replace("`", "'")
