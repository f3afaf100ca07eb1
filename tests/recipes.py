"""Reading the sections "How to add ..." of CONTRIBUTING.md: files, additions to files, commands."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SECTION = re.compile(r"^## How to add an? ", re.MULTILINE)
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
# the last path above a block, with the name in it that is added to
_PATH = re.compile(r"(?:`(?P<name>\w+)` of )?`(?P<path>[\w/.]+\.\w+)`[^`]*:\s*$")


@dataclass
class Recipe:
    """What a section says is to be done.

    Args:
        files: path -> content of a new file.
        additions: (path, name) -> the last entry of what the file calls so.
        commands: shell commands, in order.
    """

    files: dict[str, str] = field(default_factory=dict)
    additions: dict[tuple[str, str], str] = field(default_factory=dict)
    commands: str = ""

    def write(self, folder: Path, **words: str) -> None:
        """Write the files into a copy of the repository, and add to those that are there.

        Args:
            folder: the copy.
            words: what stands for a word of the additions.
        """
        for name, text in self.files.items():
            assert not (folder / name).exists(), f"{name} exists already"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        for (name, of), text in self.additions.items():
            before, start, rest = (folder / name).read_text().partition(f"\n{of} = ")
            assert start, f"no {of} in {name}"
            for word, meaning in words.items():
                text = text.replace(word, meaning)
            inside, end = re.split(r"(?m)^(?=[)\]}])", rest, maxsplit=1)
            entry = textwrap.indent(f"{text.rstrip()},\n", "    ")
            (folder / name).write_text(before + start + inside + entry + end)


def read_recipes() -> dict[str, Recipe]:
    """Return what is added -> its section; every code block of it has to be understood."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return {
        title: _read(section)
        for title, _, section in (part.partition("\n") for part in _SECTION.split(page)[1:])
    }


def _read(section: str) -> Recipe:
    recipe, end = Recipe(), 0
    for block in _BLOCK.finditer(section.split("\n## ")[0]):
        above, end = section[end : block.start()], block.end()
        indent, language, text = block.groups()
        text = re.sub(rf"(?m)^{indent}", "", text)
        path = _PATH.search(above)
        if language == "bash":
            recipe.commands += text
        elif path is None:
            raise ValueError(f"no path above the block that begins with {text.splitlines()[0]!r}")
        elif path["name"]:
            recipe.additions[path["path"], path["name"]] = text
        else:
            recipe.files[path["path"]] = text
    return recipe
