"""README, CONTRIBUTING and the pages in docs/ name files, modules and objects that exist."""

from __future__ import annotations

import re
from pydoc import locate

from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    "adaptation benchmarks clip configs dassl datasets deploy docs pretrain results scripts "
    "support tests tools trainers"
)
FOLDER = rf"(?:{'|'.join(FOLDERS.split())})"
PATH = re.compile(rf"(?<![\w./<>*-])({FOLDER}/[\w./<>*{{}},-]*[\w/>*}}])")
FILE = re.compile(r"(?<![\w./<>*-])(\w+\.py)\b")
MODULE = re.compile(rf"python -m ({FOLDER}(?:\.\w+)*)")
NAME = re.compile(rf"`({FOLDER}(?:\.\w+)+)[`(]")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
# Files that a reader makes while following a page: mymethod.py, MyMethod/, new2base_train.sh.
OF_THE_READER = re.compile(r"(^|/)(my|new2base)", re.IGNORECASE)
# Names of a trainer file that somebody brings.
BROUGHT = {"FILE.py", "coop.py"}


def on_pages(pattern: re.Pattern) -> list[tuple]:
    """Return page and match of everything a pattern finds."""
    return [
        (page, found)
        for page in PAGES
        for found in dict.fromkeys(pattern.findall(page.read_text(encoding="utf-8")))
    ]


def alternatives(path: str) -> list[str]:
    """Return the paths that ``a/{b,c}`` stands for."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    start, end = path[: braces.start()], path[braces.end() :]
    return [full for word in braces[1].split(",") for full in alternatives(start + word + end)]


def exists(path: str) -> bool:
    """Return whether there is such a file or folder; ``<name>`` stands for any name."""
    return all(
        any(ROOT.glob(one.rstrip("/"))) for one in alternatives(re.sub("<[^<>]*>", "*", path))
    )


def exists_anywhere(name: str) -> bool:
    """Return whether a file of this name is at the top or in one of the folders."""
    return exists(name) or any(any((ROOT / folder).rglob(name)) for folder in FOLDERS.split())


def test_files_exist():
    found = [(*entry, exists) for entry in on_pages(PATH)]
    found += [(*entry, exists_anywhere) for entry in on_pages(FILE) if entry[1] not in BROUGHT]
    lacking = [
        f"{page.name}: {path}"
        for page, path, is_there in found
        if not OF_THE_READER.search(path) and not is_there(path)
    ]
    assert len(found) > 100 and lacking == []


def test_links_lead_to_files():
    found = on_pages(LINK)
    lacking = [f"{page.name}: {path}" for page, path in found if not (page.parent / path).exists()]
    assert len(found) > 20 and lacking == []


def test_commands_and_objects_exist():
    modules = on_pages(MODULE)
    lacking = [f"{page.name}: {name}" for page, name in modules if locate(name) is None]
    names = on_pages(NAME)
    lacking += [f"{page.name}: {name}" for page, name in names if locate(name) is None]
    assert modules and names and lacking == []
