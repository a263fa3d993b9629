"""The documentation says what the program does: verbs, record fields, quantities, files and links."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from harness import spec
from harness.record import Record
from harness.store.samples import samples_schema
from harness.yamlfile import load_model
from peft_matrix.cli import app
from reports.apps.reproduction.claims import load_claims
from scripts import make_docs
from tasks.task import TaskDefinition

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "results" / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(page for part in ("decisions", "findings", "howto") for page in (ROOT / "docs" / part).glob("*.md")),
    ]
)


def verbs() -> dict[str, typer.models.CommandInfo]:
    return {(c.name or c.callback.__name__).replace("_", "-"): c for c in app.registered_commands}


@pytest.mark.parametrize("verb", verbs())
def test_the_readme_names_every_command(verb: str) -> None:
    assert re.search(rf"peft-matrix {verb}\b|`{verb}`", README), f"the README does not mention {verb!r}"
    assert verbs()[verb].callback.__doc__


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_page_of_the_site_navigation_exists() -> None:
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
    assert len(nav) > 15
    for name in nav:
        assert (ROOT / name.removeprefix("source/") if name.startswith("source/") else ROOT / "docs" / name).is_file()


def yaml_blocks(*keys: str) -> list[Any]:
    """YAML examples of the pages that have all of these keys at the top."""
    blocks = [
        (page, text)
        for page in PAGES
        for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    ]
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}")
        for page, text in blocks
        if all(re.search(rf"^{key}:", text, flags=re.M) for key in keys)
    ]


@pytest.mark.parametrize("text", yaml_blocks("name", "models", "methods"))
def test_sweeps_in_the_pages_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    assert spec.load(path).spec.methods


@pytest.mark.parametrize("text", yaml_blocks("name", "version", "kind"))
def test_tasks_in_the_pages_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_model(path, TaskDefinition)[0].kind


@pytest.mark.parametrize("text", yaml_blocks("paper", "claims"))
def test_claims_in_the_pages_are_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text(text, encoding="utf-8")
    assert load_claims([tmp_path])


def test_the_glossary_has_at_most_40_terms() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", text, flags=re.M)
    assert 20 <= len(terms) <= 40
    assert len(terms) == len(set(terms))
    assert terms == sorted(terms, key=str.lower)


@pytest.mark.parametrize("page", make_docs.PAGES)
def test_generated_pages_are_current(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == make_docs.PAGES[page](), f"{page} is not up to date. Run: make docs"


def test_every_field_of_a_record_is_explained() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for name in [*Record.model_fields, *samples_schema().names]:
        assert f"`{name}`" in text, f"results/README.md does not explain {name}"


def test_every_folder_of_the_readme_exists() -> None:
    for folder in re.findall(r"^\| `([\w/]+)/` \|", README, flags=re.M):
        assert (ROOT / folder).is_dir(), folder


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.M))
    assert {"demo", "test", "bench"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_continuous_integration_calls_the_test_command() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), flags=re.M)


def test_the_readme_counts_claims_by_kind() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    kinds = {
        kind: sum(map(int, re.findall(r"(\d+) ", counts)))
        for kind, counts in re.findall(r"^- \*\*([^*`]+)\*\*: (.+)\.$", text.split("## ")[0], flags=re.M)
    }
    found = re.search(r"^(\d+) claims and", text, flags=re.M)
    assert found is not None
    own = {kind: n for kind, n in kinds.items() if kind != "measured (proxy)"}  # a proxy is no verdict on its claim
    assert sum(own.values()) == int(found[1])
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"judge [{found[1]} claims of papers]" in readme
    told = {
        "measured": "measured here",
        "counted from shapes": "counted from shapes",
        "arithmetic on printed numbers": "arithmetic on printed numbers",
        "no evidence yet": "without evidence yet",
    }
    counts = ", ".join(f"{own[kind]} {words}" for kind, words in told.items())
    assert f"{found[1]} claims of papers: {counts}" in readme
    held = re.search(r"(\d+) agrees by construction", text)
    assert held is not None
    proxies = f"{kinds['measured (proxy)']} smaller experiments of them (measured proxies)"
    assert f"{proxies}, {held[1]} of which hold by construction" in readme
