"""What there is to choose from: methods, data sets, backbones, protocols (``train.py --list``).

Nothing is listed here. A method is what is registered; its line and its paper are those of its
docstrings: the first line of its file, ``Name: what it is.``, or of its class, and the sentence
with the title in quotes and the year that opens the next paragraph. A data set's line is the first
of its file, a backbone's stands beside its address (``clip/loading.py``), a protocol's in
``protocols.py``.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from protocols import PROTOCOLS
from scripts.methods import DATASETS, ROOT, method_names, read_method, stems
from support.hints import did_you_mean, nearest

#: in front of what is said of a name, and of its further lines
INDENT, DEEPER = " " * 6, " " * 8
#: the sentence that names a paper: its title in quotes, then a year or an arXiv number
_PAPER = re.compile(r'.*?"[^"]+".*?(?:\b(?:19|20)\d\d\b|arXiv).*?(?=\.(?:\s|$)|;)')


@dataclass(frozen=True)
class Entry:
    """Something to choose.

    Args:
        name: as options and config keys take it.
        line: what it is.
        paper: authors, title, place and year; empty where there is none.
        used: where its name is another: folder of scripts, config file.
    """

    name: str
    line: str
    paper: str = ""
    used: str = ""


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n")]


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", name).lower()


def _documented(obj: Any) -> tuple[list[str], list[str]]:
    """Return the paragraphs of the docstrings of a class and of its file."""
    module = sys.modules.get(obj.__module__)
    return _paragraphs(obj.__doc__), _paragraphs(getattr(module, "__doc__", ""))


def line_of(obj: Any) -> str:
    """Return what a registered class is, in a line: of its file, if that is called as it is."""
    own, files = _documented(obj)
    name, colon, line = files[0].partition(": ")
    return (line if colon and _plain(name) == _plain(obj.__name__) else own[0]).removesuffix(".")


def paper_of(obj: Any) -> str:
    """Return the paper that the docstring of a class, or else of its file, names; or nothing."""
    for paragraphs in _documented(obj):
        found = _PAPER.match(paragraphs[1]) if len(paragraphs) > 1 else None
        if found:
            return found[0]
    return ""


def methods() -> list[Entry]:
    """Return the registered trainers, those of the user's own files included."""
    import trainers  # noqa: F401  registers the methods
    from dassl.engine import TRAINER_REGISTRY

    folders: dict[str, list[str]] = {}
    for name in method_names():
        folders.setdefault(read_method(name).trainer, []).append(f"scripts/{name}/")
    return [
        Entry(name, line_of(obj), paper_of(obj), ", ".join(folders.get(name, [])))
        for name in sorted(TRAINER_REGISTRY.registered_names(), key=str.lower)
        for obj in [TRAINER_REGISTRY.get(name)]
    ]


def datasets() -> list[Entry]:
    """Return the registered data sets; the paper stands in the line, as authors and year."""
    import datasets  # noqa: F401  registers them
    from dassl.data.datasets import DATASET_REGISTRY

    files: dict[str, str] = {}
    for stem in stems(DATASETS):
        path = DATASETS / f"{stem}.yaml"
        name = yaml.safe_load((ROOT / path).read_text("utf-8"))["DATASET"]["NAME"]
        files[name] = path.as_posix()
    entries = []
    for name in sorted(DATASET_REGISTRY.registered_names(), key=str.lower):
        own, file = _documented(DATASET_REGISTRY.get(name))
        line = (file[0] or own[0]).removesuffix(".")
        paper = re.search(r" \(([^()]+, \d{4})\)", line)
        if paper:
            line = line.replace(paper[0], "")
        entries.append(Entry(name, line, paper[1] if paper else "", files.get(name, "")))
    return entries


def backbones() -> list[Entry]:
    """Return the backbones that have a name, and how those of open_clip are called."""
    from clip.loading import available_models, model_info

    return [Entry(name, *model_info(name)) for name in available_models()] + [
        Entry(
            "open_clip:ARCHITECTURE/TAG",
            "plain ViT and ResNet models of open_clip.list_pretrained(); docs/weights.md",
            'Cherti et al., "Reproducible Scaling Laws for Contrastive Language-Image Learning", '
            "CVPR 2023, arXiv 2212.07143",
        )
    ]


def protocols() -> list[Entry]:
    """Return the protocols; what they do is what their scripts do."""
    return [
        Entry(
            protocol.name,
            f"{protocol.title}: {'; '.join(s.does for s in protocol.scripts if s.does)}",
            protocol.paper,
            ", ".join(f"{script.name}.sh" for script in protocol.scripts),
        )
        for protocol in PROTOCOLS
    ]


#: word after ``--list`` -> how the names are used, and what lists them
KINDS: dict[str, tuple[str, Callable[[], Iterable[Entry]]]] = {
    "methods": ("--trainer NAME, or the scripts beside it", methods),
    "datasets": ("--dataset-config-file with the file beside it", datasets),
    "backbones": ("--backbone NAME, or the path of a file", backbones),
    "protocols": ("scripts/METHOD/ with the script beside it", protocols),
}


#: starts of words that mean a kind -> that kind
MEANT = {"trainer": "methods", "model": "backbones", "weight": "backbones", "data": "datasets"}


def kind_of(word: str) -> str:
    """Return the kind that a word after ``--list`` names.

    Raises:
        ValueError: it names none; says which one is meant, if that is known.
    """
    if word in KINDS:
        return word
    near = [kind for start, kind in MEANT.items() if word.lower().startswith(start)]
    hint = did_you_mean(near) or nearest(word, KINDS)
    raise ValueError(f"--list: no kind {word!r}; there are: {' '.join(KINDS)}{hint}")


def listing(kind: str = "") -> str:
    """Return the text of ``--list``.

    Args:
        kind: one of :data:`KINDS`; all of them where it is empty.

    Raises:
        ValueError: there is no such kind.
    """
    lines = []
    for word in [kind_of(kind)] if kind else KINDS:
        use, entries = KINDS[word]
        lines.append(f"{word} ({use})")
        for entry in entries():
            used = f"  [{entry.used}]" if entry.used else ""
            lines.append(f"  {entry.name}{used}")
            for text in (entry.line, entry.paper):
                lines += textwrap.wrap(text, 92, initial_indent=INDENT, subsequent_indent=DEEPER)
        lines.append("")
    return "\n".join(lines).rstrip()
