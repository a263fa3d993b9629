from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.registry import Registry


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that can be imported and holds one plug-in."""
    (tmp_path / "plugin_for_tests.py").write_text("class Good:\n    name = 'good'\n")
    (tmp_path / "plugin_that_fails.py").write_text("import a_package_nobody_has.part\n")
    (tmp_path / "plugin_out_of_date.py").write_text("from json import no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("plugin_for_tests", "plugin_that_fails", "plugin_out_of_date"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "plugin_for_tests"


def test_nothing_is_imported_before_it_is_asked_for(module: str) -> None:
    registry: Registry[type] = Registry("thing", {"good": f"{module}:Good"})
    assert registry.names() == ["good"]
    assert "good" in registry
    assert list(registry) == ["good"]
    assert module not in sys.modules
    assert registry.get("good").__name__ == "Good"
    assert module in sys.modules
    assert registry.get("good") is registry.get("good")


def test_names_keep_the_order_of_registration() -> None:
    registry: Registry[type] = Registry("thing", {"z": "m:a", "a": "m:b"})
    registry.add("m", "m:c")
    assert registry.names() == ["z", "a", "m"]


def test_a_name_registered_twice_is_an_error() -> None:
    registry: Registry[type] = Registry("thing", {"a": "m:one"})
    with pytest.raises(ValueError, match="thing 'a' is registered twice: m:one and m:two"):
        registry.add("a", "m:two")


def test_a_target_without_an_attribute_is_an_error() -> None:
    with pytest.raises(ValueError, match="must read 'module:attribute'"):
        Registry("thing", {"a": "module"})


def test_an_unknown_name_gets_a_suggestion_and_its_place() -> None:
    registry: Registry[type] = Registry("method", {"lora": "m:a", "full": "m:b"})
    with pytest.raises(UserError) as caught:
        registry.get("lroa", where="x.yaml, line 3")
    assert str(caught.value) == "x.yaml, line 3: unknown method 'lroa'. Did you mean 'lora'? Allowed: full, lora."


@pytest.mark.parametrize(
    ("target", "said", "fix"),
    [
        ("plugin_that_fails:X", "needs a package that is not installed", "pip install a_package_nobody_has"),
        ("no_such_module_here:X", "cannot be loaded from no_such_module_here:X", "update or uninstall"),
        ("json.no_such_part:X", "cannot be loaded", "update or uninstall"),
        ("plugin_out_of_date:X", "cannot import name 'no_such_name'", "update or uninstall"),
        ("plugin_for_tests:Bad", "has no attribute 'Bad'", "update or uninstall"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_says_why(module: str, target: str, said: str, fix: str) -> None:
    registry: Registry[type] = Registry("method", {"x": target})
    with pytest.raises(UserError, match=said) as caught:
        registry.get("x", where="x.yaml")
    assert fix in caught.value.fix
    assert not caught.value.fix.endswith(".part")
    assert caught.value.where == "x.yaml"


def install(folder: Path, package: str, kind: str, name: str, target: str) -> None:
    """Put a package with one entry point on disk, as pip would."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[peft_matrix.{kind}]\n{name} = {target}\n")


def test_other_packages_add_plug_ins_through_entry_points(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "somebodys-method", "thing", "foreign", f"{module}:Good")
    install(tmp_path, "not-of-this-kind", "other", "elsewhere", f"{module}:Good")
    registry: Registry[type] = Registry("thing", {"own": "m:a"})
    assert registry.names() == ["own", "foreign"]
    assert module not in sys.modules
    assert registry.get("foreign").__name__ == "Good"


def test_a_package_that_claims_a_taken_name_is_named(module: str, tmp_path: Path) -> None:
    install(tmp_path, "somebodys-method", "thing", "own", f"{module}:Good")
    registry: Registry[type] = Registry("thing", {"own": "m:a"})
    with pytest.raises(UserError, match=r"somebodys-method: thing 'own' is registered twice") as caught:
        registry.names()
    assert "Uninstall" in caught.value.fix
    with pytest.raises(UserError):
        registry.get("own")


def test_the_same_package_found_twice_counts_once(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # from Python 3.12 on, importlib gives such an entry point twice
    entry = metadata.EntryPoint("foreign", f"{module}:Good", "peft_matrix.thing")
    monkeypatch.setattr(metadata, "entry_points", lambda **_selection: [entry, entry])
    registry: Registry[type] = Registry("thing")
    assert registry.names() == ["foreign"]


@pytest.mark.parametrize("catalog", ["harness.methods.catalog", "harness.quantizers.catalog"])
def test_listing_the_built_in_plug_ins_imports_nothing_heavy(catalog: str) -> None:
    code = (
        f"import sys, {catalog} as c; from harness.registry import Registry\n"
        "for value in list(vars(c).values()):\n    isinstance(value, Registry) and value.names()\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "[]\n"


def test_the_group_of_entry_points_is_the_documented_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(metadata, "entry_points", lambda group: asked.append(group) or [])  # type: ignore[func-returns-value]
    Registry("method").names()
    assert asked == ["peft_matrix.method"]
