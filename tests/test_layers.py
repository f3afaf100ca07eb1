"""Who may import whom: packages import downwards only, within functions as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: package -> packages and files of ours that it may import
ALLOWED = {
    "support": set(),
    "clip": {"support"},
    "dassl": {"support"},
    "datasets": {"dassl", "support"},
    "protocols": {"support"},
    "results": {"dassl", "protocols", "support"},
    "adaptation": {"clip", "dassl", "datasets", "results", "support"},
    "trainers": {"adaptation", "clip", "dassl", "datasets", "support"},
    "deploy": {"adaptation", "clip", "dassl", "results", "support", "trainers"},
    "tools": {"adaptation", "clip", "dassl", "datasets", "deploy", "protocols", "results"}
    | {"support", "trainers"},
    "pretrain": {"adaptation", "clip", "datasets", "support"},
    "parse_test_res": {"results", "support"},
}
#: what may import all of them; imported by no package above
PROGRAMS = {"benchmarks", "predict", "scripts", "serve", "train"}
#: package -> libraries that it does without, so that what uses it starts fast
WITHOUT = {"support": {"numpy", "torch"}, "results": {"torch"}, "parse_test_res": {"torch"}}


def files_of(package: str) -> list[Path]:
    return sorted(ROOT.glob(f"{package}/**/*.py")) or [ROOT / f"{package}.py"]


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, those by a name in quotes included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def forbidden(package: str, names: set[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files_of(package)
        for line, name in imported(file)
        if name.partition(".")[0] in names
    ]


def test_every_package_has_its_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    programs = {path.stem for path in ROOT.glob("*.py")}
    assert packages | programs | {"scripts"} == ALLOWED.keys() | PROGRAMS
    for package, below in ALLOWED.items():
        for other in below:
            assert package not in ALLOWED[other], f"{package} and {other} import each other"


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards(package):
    ours = ALLOWED.keys() | PROGRAMS
    assert forbidden(package, ours - {package} - ALLOWED[package]) == []
    assert forbidden(package, WITHOUT.get(package, set())) == []


def test_files_of_bundles_import_nothing_of_ours():
    ours = ALLOWED.keys() | PROGRAMS | {"torch", "torchvision"}
    assert forbidden("deploy/standalone", ours) == []


def test_no_method_imports_another():
    assert [line for line in forbidden("trainers", {"trainers"}) if "__init__.py" not in line] == []
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files_of("trainers")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_an_import_within_a_function_is_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def f():\n    import a.b\n    from c import d\n    import_module('e.f')\n")
    assert sorted(imported(file)) == [(2, "a.b"), (3, "c"), (4, "e.f")]
