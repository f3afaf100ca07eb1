"""Every config key, its default, its meaning, who reads it: ``python -m tools.config_reference``.

Keys, defaults and meanings are those of the code: the ``#:`` lines above the assignment that
declares a key. A key of a method's node is read by the methods of that node. Who reads a shared key
is recorded: ``python -m benchmarks.config_reads`` builds, trains and tests every method on the
embedded data and writes down what each reads on the way (:data:`READS`).

``--write`` writes the whole as ``docs/config_reference.md``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import linecache
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocols import PROTOCOLS
from support.command_line import ROOT, add_traceback, run_command
from support.files import write_text
from support.hints import nearest, same_but_case

if TYPE_CHECKING:
    from dassl.config import CfgNode

PAGE = ROOT / "docs" / "config_reference.md"
#: what each method read when it was recorded
READS = ROOT / "benchmarks" / "results" / "config_reads.json"
#: heading of the nodes that no method here has
OTHERS = "TRAINER, other nodes"
#: keys that the node of every method may have, and what they mean in each
OF_EVERY_NODE = {"PREC": "precision of the frozen CLIP: fp32, fp16, bf16, or amp (mixed)"}

INTRODUCTION = """# Config reference

<!-- written by python -m tools.config_reference --write -->

Every key, as the code declares it. A YAML file, an option or a `KEY VALUE` pair at the end of the
command line sets it, and the later one wins (`python train.py --help`). The same is printed by

```bash
python -m tools.config_reference                    # all of it
python -m tools.config_reference --method MMLoP     # what one method reads
python -m tools.config_reference --key OPTIM        # keys with this in their name
```

*Read by*: a key below `TRAINER.<NODE>` belongs to the methods with that node. For all other keys it
was recorded which of them each method reads. `python -m benchmarks.config_reads` builds every
method with its `tiny.yaml`, trains it for an epoch on the embedded data and tests it. A dash says
that none read the key there. Such a key counts with other settings (a transform's number counts
with that transform), on a GPU, for trainers of your own, or not at all where its meaning says so.

*Shipped*: the value in the config files of a method that its scripts take for 16 shots, where it is
not the default. Protocols stand behind it where their files differ. `--method` has this column for
the engine's keys, too.
"""


@dataclass(frozen=True)
class Key:
    """A config key.

    Args:
        name: dotted.
        default: its value before any file is read.
        meaning: from the comment above its declaration; empty where there is none.
        readers: names of the methods that read it.
    """

    name: str
    default: Any
    meaning: str
    readers: tuple[str, ...]

    @property
    def section(self) -> str:
        """The heading that it stands below: its first word, or its node below TRAINER."""
        words = self.name.split(".")
        if len(words) == 1:
            return "Top level"
        if words[0] != "TRAINER" or len(words) == 2:
            return words[0]
        return ".".join(words[:2]) if self.readers else OTHERS


@contextmanager
def traced_declarations() -> Iterator[dict[tuple[int, str], tuple[str, int]]]:
    """Note where keys of config nodes are set in this context.

    Yields:
        ``(id of the node, key)`` -> file and line, filled on the way.
    """
    from dassl.config import CfgNode

    places: dict[tuple[int, str], tuple[str, int]] = {}
    plain = CfgNode.__setattr__

    def noting(node: CfgNode, key: str, value: Any) -> None:
        plain(node, key, value)
        frame = sys._getframe(1)
        places[id(node), key] = (frame.f_code.co_filename, frame.f_lineno)

    CfgNode.__setattr__ = noting  # type: ignore[method-assign, assignment]
    try:
        yield places
    finally:
        del CfgNode.__setattr__  # yacs's is seen again


def comment_above(file: str, line: int) -> str:
    """Return the text of the ``#:`` lines directly above a line of a file."""
    words: list[str] = []
    while (text := linecache.getline(file, line - 1).strip()).startswith("#:"):
        words.insert(0, text.removeprefix("#:").strip())
        line -= 1
    return " ".join(words)


def declared() -> tuple[CfgNode, dict[str, str]]:
    """Return the config with all keys of this toolbox, and dotted key or node -> its comment."""
    import datasets
    import trainers
    from dassl.config import CfgNode, defaults

    with traced_declarations() as places:
        # once more, since it was imported before anything was noted
        spec = importlib.util.spec_from_file_location("dassl.config.again", defaults.__file__)
        assert spec is not None and spec.loader is not None
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
        cfg = again._C
        trainers.extend_cfg(cfg)
        datasets.extend_cfg(cfg)
    comments: dict[str, str] = {}

    def look_at(node: CfgNode, prefix: str) -> None:
        for key, value in node.items():
            place = places.get((id(node), key))
            comments[prefix + key] = comment_above(*place) if place else ""
            if isinstance(value, CfgNode):
                look_at(value, f"{prefix}{key}.")

    look_at(cfg, "")
    return cfg, comments


def meaning_of(name: str, comments: dict[str, str]) -> str:
    """Return what a key means: its own comment, that of every method's, or that of its node."""
    node, _, last = name.rpartition(".")
    own = comments[name]
    if not own and node.startswith("TRAINER."):
        own = OF_EVERY_NODE.get(last, "")
    return own or comments.get(node, "")


def recorded_reads() -> dict[str, set[str]]:
    """Return method -> keys that it read, of :data:`READS`."""
    reads: dict[str, set[str]] = {}
    for group in json.loads(READS.read_text("utf-8")):
        for method in group["methods"]:
            reads.setdefault(method, set()).update(group["keys"])
    return reads


def methods_here() -> list[str]:
    """Return the names of the methods that come with the toolbox, in alphabetical order."""
    import trainers  # noqa: F401  registers them
    from dassl.engine import TRAINER_REGISTRY

    return sorted(
        (
            name
            for name in TRAINER_REGISTRY.registered_names()
            if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
        ),
        key=str.lower,
    )


def all_keys() -> list[Key]:
    """Return all keys, in the order in which they are declared."""
    from dassl.config import leaves
    from dassl.engine import config_node

    cfg, comments = declared()
    reads, methods = recorded_reads(), methods_here()
    nodes = {method: config_node(method) for method in methods}
    keys = []
    for name, default in leaves(cfg):
        words = name.split(".")
        if words[0] == "TRAINER" and len(words) > 2:
            readers = [method for method in methods if nodes[method] == words[1]]
        else:
            readers = [method for method in methods if name in reads.get(method, ())]
        keys.append(Key(name, default, meaning_of(name, comments), tuple(readers)))
    return keys


def usual_configs(method: str) -> dict[str, str]:
    """Return protocol -> the config that a method's scripts take for 16 shots of most data sets.

    ``configs/methods/`` says so, of whose lines the first that fits is taken. A trainer may have
    several files there, such as IVLP; the one of its own name counts.
    """
    import yaml

    def listed(value: Any) -> list[str]:
        return [str(one) for one in (value if isinstance(value, list) else [value])]

    found: dict[str, str] = {}
    files = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
    for file in sorted(files, key=lambda file: file.stem != method.lower()):
        table = yaml.safe_load(file.read_text("utf-8"))
        if found or table["trainer"] != method:
            continue
        for protocol in (p for p in PROTOCOLS if p.name in table.get("protocols", [p.name])):
            fitting = (
                line["config"]
                for line in table["configs"]
                if protocol.configs in listed(line.get("protocol", protocol.configs))
                and "16" in listed(line.get("shots", 16))
                and "dataset" not in line
            )
            found[protocol.configs] = next(fitting)
    return found


@functools.cache
def shipped(method: str) -> dict[str, str]:
    """Return key -> what the config files of a method set it to, where that is not its default.

    The files are those that its scripts take for 16 shots of a data set other than ImageNet and
    the embedded ones; of values that differ between protocols each names its own.
    """
    from dassl.config import leaves

    values: dict[str, dict[str, str]] = {}
    default = {key: shown(value) for key, value in leaves(declared()[0])}
    for protocol, config in usual_configs(method).items():
        cfg = declared()[0]
        cfg.merge_from_file(str(ROOT / "configs" / "trainers" / method / f"{config}.yaml"))
        for key, value in leaves(cfg):
            values.setdefault(key, {})[protocol] = shown(value)
    found = {}
    for key, by_protocol in values.items():
        every = list(dict.fromkeys(by_protocol.values()))
        if every == [default[key]]:
            continue
        found[key] = f"`{every[0]}`"
        if len(every) > 1:
            found[key] = ", ".join(
                f"`{value}` ({', '.join(p for p, v in by_protocol.items() if v == value)})"
                for value in every
            )
    return found


def said_of(readers: Sequence[str], methods: Sequence[str]) -> str:
    """Return who reads a key, in words."""
    others = [method for method in methods if method not in readers]
    if not readers:
        return "–"
    if not others:
        return "all"
    if len(others) < len(readers):
        return f"all but {', '.join(others)}"
    return ", ".join(readers)


def tables(keys: Sequence[Key], method: str = "") -> str:
    """Return the keys as tables in Markdown, one for each section.

    Args:
        keys: what to show.
        method: its own keys come first, and all have the values of its config files; without it,
            only keys below TRAINER have those of their methods.
    """
    methods, lines, sections = methods_here(), [], by_section(keys)
    if method:
        own = [section for section in sections if section.startswith("TRAINER.")]
        sections = {section: sections[section] for section in [*own, *sections]}
    for section, below in sections.items():
        has_shipped = bool(method) or section.startswith("TRAINER.")
        columns = ["key", "default", *(["shipped"] if has_shipped else []), "meaning", "read by"]
        lines += [
            "",
            f"## {section}",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
        ]
        for key in below:
            cells = [f"`{key.name}`", f"`{shown(key.default)}`"]
            if has_shipped:
                cells.append(shipped_of(key.name, [method] if method else key.readers))
            cells += [key.meaning, said_of(key.readers, methods)]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines).strip() + "\n"


def shipped_of(key: str, methods: Sequence[str]) -> str:
    """Return what the config files of some methods set a key to; nothing for its default."""
    values = {method: shipped(method).get(key, "") for method in methods}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{method}: {value}" for method, value in values.items() if value)


def by_section(keys: Sequence[Key]) -> dict[str, list[Key]]:
    """Return heading -> keys, in the order of their declaration: the methods' nodes behind."""
    sections: dict[str, list[Key]] = {}
    for key in keys:
        sections.setdefault(key.section, []).append(key)
    return dict(
        sorted(sections.items(), key=lambda s: (s[0] == OTHERS, s[0].startswith("TRAINER.")))
    )


def shown(value: Any) -> str:
    """Return a default as one writes it on a command line, an empty text as ``""``."""
    return value if isinstance(value, str) and value else repr(value).replace("''", '""')


def page() -> str:
    """Return the text of ``docs/config_reference.md``."""
    return f"{INTRODUCTION}\n{tables(all_keys())}"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Print every config key and what it means.")
    add = parser.add_argument
    add("--method", metavar="NAME", help="only what this method reads, its own keys first")
    add("--key", metavar="PART", help="only keys with this in their name, in any case")
    add("--write", action="store_true", help=f"write docs/{PAGE.name} instead")
    add_traceback(parser)
    return parser


def print_reference(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    if args.write:
        if args.method or args.key:
            raise ValueError("--write writes the whole page: leave out --method and --key")
        write_text(page(), PAGE)
        print(PAGE.relative_to(ROOT))
        return
    methods, keys, method = methods_here(), all_keys(), ""
    if args.method is not None:
        method = same_but_case(args.method, methods)
        if method not in methods:
            raise ValueError(
                f"--method: no method {args.method!r}; there are: {' '.join(methods)}"
                f"{nearest(args.method, methods)}"
            )
        keys = [key for key in keys if method in key.readers]
    if args.key is not None:
        names = [key.name for key in keys]
        keys = [key for key in keys if args.key.upper() in key.name]
        if not keys:
            raise ValueError(
                f"--key: no key with {args.key!r} in its name{nearest(args.key, names, cutoff=0.0)}"
            )
    print(tables(keys, method), end="")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), print_reference))
