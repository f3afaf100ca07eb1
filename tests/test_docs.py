"""Pages name files, modules, objects and sections that exist; code names pages that exist."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc import locate

import yaml

from adaptation.version import __version__
from tests.conftest import ROOT
from tests.test_layers import ALLOWED

PAGES = [
    page
    for pages in ("*.md", "docs/*.md", "benchmarks/results/*.md")
    for page in sorted(ROOT.glob(pages))
]
FOLDERS = (
    "adaptation benchmarks clip configs dassl datasets deploy docs pretrain results scripts "
    "support tests tools trainers"
)
FOLDER = rf"(?:{'|'.join(FOLDERS.split())})"
PATH = re.compile(rf"(?<![\w./<>*-])({FOLDER}/[\w./<>*{{}},-]*[\w/>*}}])")
FILE = re.compile(r"(?<![\w./<>*-])(\w+\.py)\b")
MODULE = re.compile(rf"python -m ({FOLDER}(?:\.\w+)*)")
NAME = re.compile(rf"`({FOLDER}(?:\.\w+)+)[`(]")
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
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


def sections(page: Path) -> set[str]:
    """Return the names by which links reach the headings of a page, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(text)
    }


def is_there(page: Path, link: str) -> bool:
    """Return whether a link of a page leads to a file and, where it names one, to a section."""
    path, _, section = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not section or section in sections(target))


def test_links_lead_to_files_and_sections():
    found = on_pages(LINK)
    lacking = [f"{page.name}: {link}" for page, link in found if not is_there(page, link)]
    assert len(found) > 100 and lacking == []


def test_every_page_is_in_an_index():
    for folder in ("docs", "benchmarks/results"):
        index = ROOT / folder / "README.md"
        linked = {link.partition("#")[0] for page, link in on_pages(LINK) if page == index}
        pages = {page.name for page in index.parent.glob("*.md")} - {"README.md"}
        assert pages - linked == set()


def test_pages_that_code_names_exist():
    files = [file for folder in FOLDERS.split() for file in (ROOT / folder).rglob("*.py")]
    files += ROOT.glob("*.py")
    named = {
        (file.name, page)
        for file in files
        for page in re.findall(r"\bdocs/\w+\.md", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 10 and {one for one in named if not (ROOT / one[1]).exists()} == set()


def test_commands_and_objects_exist():
    modules = on_pages(MODULE)
    lacking = [f"{page.name}: {name}" for page, name in modules if locate(name) is None]
    names = on_pages(NAME)
    lacking += [f"{page.name}: {name}" for page, name in names if locate(name) is None]
    assert modules and names and lacking == []


def test_the_drawing_of_the_packages_is_that_of_the_layers():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = page.split("<!-- packages -->")[1].split("```")[1]
    arrows = re.findall(r"^ +(\w+)(?:\[.*?\])? --> (\w+)", drawing, re.MULTILINE)
    below: dict[str, set[str]] = {}
    for upper, lower in arrows:
        below.setdefault(upper, set()).add(lower)
    for _ in below:  # as many rounds as there are packages reach every one that is below another
        for upper in below:
            below[upper].update(*(below.get(lower, set()) for lower in below[upper]))
    allowed = {**ALLOWED, "programs": {*ALLOWED}}
    assert {*ALLOWED, "programs"} == {*below, "support"}
    assert [arrow for arrow in arrows if arrow[1] not in allowed[arrow[0]]] == []
    assert {
        upper for upper in {*below} - {"programs"} if not allowed[upper] <= below[upper]
    } == set()


def test_changelog_and_citation_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
