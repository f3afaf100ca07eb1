"""Every protocol, written once: data sets, scripts and their arguments, folders of results, tables.

``scripts/run.sh`` and ``scripts/all.sh`` run what stands here, ``parse_test_res.py`` reads it back.
To add a protocol, add an entry to :data:`PROTOCOLS`, and for each method that people are to run it
with by name a forwarder ``scripts/<method>/<script>.sh`` (a copy of another).

``base`` is the first half of a data set's classes, ``new`` the second, ``all`` both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from support.hints import nearest

# --- groups of data sets, by the names of their files in configs/datasets/ ------------------------

#: those that come with the repository, but for the variants of one
EMBEDDED = ("digits", "letters", "symbols", "shapes")
#: those of them that a sweep takes where none is named
QUICK = EMBEDDED[:2]
#: the one whose models are tested on others, and on variants of its own, where none is named
EMBEDDED_SOURCE = "symbols"
#: a further one, for choosing settings, so that none is chosen on what is reported
FOR_SETTINGS = "lowercase_letters"
#: those of the papers' tables, in their order
ELEVEN = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
#: those that ImageNet's models are tested on
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
#: data set -> those with its classes that its models are tested on in domain generalisation
VARIANTS_OF = {
    "imagenet": VARIANTS,
    EMBEDDED_SOURCE: ("symbols_v2", "symbols_sketch", "symbols_a", "symbols_r"),
}
#: all that are written on first use
GENERATED = (*EMBEDDED, FOR_SETTINGS, *VARIANTS_OF[EMBEDDED_SOURCE])
#: data set that models for a test on other data sets are trained on, unless SOURCE names one
SOURCE = "imagenet"

# --- folders --------------------------------------------------------------------------------------

# {name} or {name:pattern}; a path is read where the field matches the pattern
_FIELD = re.compile(r"\{(\w+)(?::([^}]*))?\}")
_PATTERNS = {
    "shots": r"\d+|all",
    "seed": r"\d+",
    "subfolder": r"[^/]+(?:/[^/]+)*?",  # upstream's runs may have several
}
#: field -> value with which its part in brackets is left out
_LEFT_OUT = {"subfolder": "", "source": SOURCE}


@dataclass(frozen=True)
class Folder:
    """Folders of results of one kind, below the output folder.

    Args:
        template: their path. ``{dataset}``, ``{trainer}``, ``{config}``, ``{shots}`` (a number or
            ``all``), ``{seed}``, ``{source}`` (what was trained on) and ``{subfolder}`` stand for
            values of the run; a part in brackets is left out where there is no subfolder, and where
            the source is :data:`SOURCE`.
        classes: of the data set that the runs take: base, new or all.
        metric: the column of a table that the results make.
        trains: whether the runs train, and then test on these classes.
        sets_shots: whether the runs are given the number of shots, as they are where the data set
            of the training is that of the test.
        pairs: KEY VALUE pairs that the runs are given besides.
    """

    template: str
    classes: str = "all"
    metric: str = "accuracy"
    trains: bool = False
    sets_shots: bool = True
    pairs: tuple[str, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields of the template."""
        return frozenset(name for name, _ in _FIELD.findall(self.template))

    def path(self, **fields: object) -> str:
        """Return the path of a run.

        Args:
            fields: value of every field; those that the template lacks are ignored.
        """

        def part(match: re.Match[str]) -> str:
            names = [name for name, _ in _FIELD.findall(match[1])]
            return "" if all(fields[n] == _LEFT_OUT[n] for n in names) else match[1]

        kept = re.sub(r"\[([^]]*)\]", part, self.template)
        return _FIELD.sub(lambda match: str(fields[match[1]]), kept)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        regex = ""
        for word in re.split(r"(\{[^}]*\}|\[|\])", self.template):
            if field := _FIELD.fullmatch(word):
                name, pattern = field.groups()
                regex += f"(?P<{name}>{pattern or _PATTERNS.get(name, '[^/]+')})"
            else:
                # a part in brackets only where it has to be there
                regex += {"[": "(?:", "]": ")??"}.get(word, re.escape(word))
        return re.compile(regex)

    def read(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path; None if it is none of these folders."""
        match = self._regex.fullmatch(path)
        return match and {
            name: _LEFT_OUT[name] if value is None else value
            for name, value in match.groupdict().items()
        }


TRAINING = Folder("{dataset}/{trainer}/{config}_{shots}shots[/{subfolder}]/seed{seed}", trains=True)
PUBLISHED = Folder(f"few_shot/{TRAINING.template}")
EVALUATION = Folder(
    "evaluation/{trainer}/{config}_{shots}shots[/{subfolder}][/from_{source}]/{dataset}/seed{seed}",
    sets_shots=False,
)
ZEROSHOT = Folder("{trainer:ZeroshotCLIP2?}/{config}/{dataset}", sets_shots=False)


def _base2new(part: str, classes: str, trains: bool = False, pairs: tuple[str, ...] = ()) -> Folder:
    tail = "{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}"
    template = f"base2new/{part}/{tail}"
    return Folder(template, classes, metric=classes, trains=trains, pairs=pairs)


TRAIN_BASE = _base2new("train_base", "base", trains=True)
TEST_BASE = _base2new("test_base", "base")
TEST_NEW = _base2new("test_new", "new")
TEST_ALL = _base2new("test_all", "all", pairs=("TEST.BASE_AND_NEW", "True"))

# --- protocols ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """A script of a protocol, ``scripts/<method>/<name>.sh``.

    Args:
        name: of the script.
        arguments: their names, in order, before the KEY VALUE pairs; those in brackets may be left
            out. Without a DATASET a script that trains takes SOURCE, another one all data sets of
            its protocol.
        does: the line of ``--help`` for it; empty where it has none.
        runs: the folders that it writes for each data set and seed.
        trained_by: name of the script whose training it tests; empty where it trains itself, or
            tests a method that has nothing to train.
        published: path below WEIGHTS of published weights that it can test instead; empty where
            it takes none.
        published_runs: the folders that it writes then, where these differ.
    """

    name: str
    arguments: str
    does: str
    runs: tuple[Folder, ...]
    trained_by: str = ""
    published: str = ""
    published_runs: tuple[Folder, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether its runs train."""
        return self.runs[0].trains

    @property
    def transfers(self) -> bool:
        """Whether it tests on other data sets than that of the training."""
        return any("source" in folder.fields for folder in self.runs)

    @property
    def folders(self) -> tuple[Folder, ...]:
        """All folders that it may write."""
        return (*self.published_runs, *self.runs)

    def usage(self, method: str) -> str:
        """Return the line that says what it takes, for a folder of scripts."""
        return f"usage: scripts/{method}/{self.name}.sh {self.arguments} [KEY VALUE ...]"


@dataclass(frozen=True)
class Protocol:
    """A protocol, and a table of results.

    Args:
        name: what PROTOCOL of ``scripts/all.sh`` calls it.
        key: what the rows of tables and the published figures call it.
        title: of its tables.
        datasets: those of the papers, in the order of their tables.
        variants: source -> the data sets that its models are tested on, where no others can be;
            else empty.
        averaged: what an average of the table is over.
        configs: the kind of config that a method takes, ``protocol`` in ``configs/methods/``.
        scripts: its own ones.
        metrics: the columns of its table: base and new, which H then joins, all, or accuracy.
        beside: further metrics of its runs' records, columns of the table of accuracies.
        paper: that it comes from; empty where there is none.
    """

    name: str
    key: str
    title: str
    datasets: tuple[str, ...]
    configs: str
    scripts: tuple[Script, ...]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    averaged: str = "data sets"
    metrics: tuple[str, ...] = ("accuracy",)
    beside: tuple[str, ...] = ()
    paper: str = ""

    @property
    def training(self) -> Script:
        """The script that trains, which may be another protocol's."""
        first = self.scripts[0]
        return find_script(first.trained_by)[1] if first.trained_by else first

    @property
    def tests(self) -> tuple[Script, ...]:
        """The scripts that test what was trained."""
        return tuple(script for script in self.scripts if script.trained_by)

    @property
    def transfers(self) -> bool:
        """Whether models are trained on one data set, SOURCE, and tested on others."""
        return any(script.transfers for script in self.scripts)

    def targets(self, source: str) -> tuple[str, ...]:
        """Return the data sets that models of a source are tested on, the papers' where it is one.

        Raises:
            ValueError: the source has no variants.
        """
        if self.variants:
            if source not in self.variants:
                having = " ".join(self.variants)
                raise ValueError(f"{source} has no variants to test on; those that have: {having}")
            return self.variants[source]
        return tuple(d for d in self.datasets if not (self.transfers and d == source))

    @property
    def folders(self) -> tuple[Folder, ...]:
        """All folders that its scripts may write."""
        return tuple(folder for script in self.scripts for folder in script.folders)


_COOP = 'Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134'
_COCOOP = (
    'Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, '
    "arXiv 2203.05557"
)

#: in the order of the tables
PROTOCOLS = (
    Protocol(
        name="base2new",
        key="base2new",
        title="Base-to-new",
        paper=_COCOOP,
        datasets=ELEVEN,
        configs="base2new",
        metrics=("base", "new"),
        scripts=(
            Script(
                name="base2new_train",
                arguments="DATASET SEED [MAX_EPOCH]",
                does="train on base, test on base",
                runs=(TRAIN_BASE,),
            ),
            Script(
                name="base2new_test",
                arguments="DATASET SEED [MAX_EPOCH]",
                does="test that model on new",
                runs=(TEST_NEW,),
                trained_by="base2new_train",
                published="base/seed{seed}",
                published_runs=(TEST_BASE, TEST_NEW),
            ),
        ),
    ),
    Protocol(
        name="base2new_all",
        key="base2new_all",
        title="Base and new together",
        datasets=ELEVEN,
        configs="base2new",
        metrics=("all",),
        beside=("base_in_all", "new_in_all", "H_in_all", "auroc"),
        scripts=(
            Script(
                name="base2new_test_all",
                arguments="DATASET SEED [MAX_EPOCH]",
                does="test that model on base and new",
                runs=(TEST_ALL,),
                trained_by="base2new_train",
                published="base/seed{seed}",
            ),
        ),
    ),
    Protocol(
        name="fewshot",
        key="fewshot",
        title="Few-shot",
        paper=_COOP,
        datasets=ELEVEN,
        configs="fewshot",
        scripts=(
            Script(
                name="fewshot",
                arguments="DATASET SHOTS [SEED ...]",
                does="all classes; seeds 1 2 3 by default",
                runs=(TRAINING,),
                published="{shots}shot/seed{seed}",
                published_runs=(PUBLISHED,),
            ),
            Script(
                name="zeroshot",
                arguments="DATASET SEED [MAX_EPOCH]",
                does="",  # zeroshot.sh is upstream's, with upstream's arguments
                runs=(ZEROSHOT,),
            ),
        ),
    ),
    Protocol(
        name="xd",
        key="cross",
        title="Cross-dataset",
        paper=_COCOOP,
        datasets=ELEVEN,
        averaged="targets",
        configs="xd",
        scripts=(
            Script(
                name="xd_train",
                arguments="[DATASET] SEED [MAX_EPOCH]",
                does="train on the source data set, all classes",
                runs=(TRAINING,),
            ),
            Script(
                name="xd_test",
                arguments="DATASET SEED [MAX_EPOCH]",
                does="test that model on another data set",
                runs=(EVALUATION,),
                trained_by="xd_train",
                published="seed{seed}",
            ),
        ),
    ),
    Protocol(
        name="dg",
        key="dg",
        title="Domain generalisation",
        paper=_COOP,
        datasets=VARIANTS,
        variants=VARIANTS_OF,
        averaged="variants",
        configs="xd",
        scripts=(
            Script(
                name="dg_test",
                arguments="[DATASET] SEED [MAX_EPOCH]",
                does="test it on the source's variants, or one of them",
                runs=(EVALUATION,),
                trained_by="xd_train",
                published="seed{seed}",
            ),
        ),
    ),
)


def by_name() -> dict[str, Protocol]:
    """Return name -> protocol."""
    return {protocol.name: protocol for protocol in PROTOCOLS}


def scripts() -> dict[str, Script]:
    """Return name -> script, of all protocols."""
    return {script.name: script for protocol in PROTOCOLS for script in protocol.scripts}


def find_script(name: str) -> tuple[Protocol, Script]:
    """Return the script of a name, and its protocol.

    Raises:
        ValueError: there is none.
    """
    for protocol in PROTOCOLS:
        for script in protocol.scripts:
            if script.name == name:
                return protocol, script
    names = list(scripts())
    raise ValueError(f"no protocol {name!r}; there are: {' '.join(names)}{nearest(name, names)}")


def folders() -> tuple[Folder, ...]:
    """Return all folders of results, in reading order: templates that start with a word first."""
    every = dict.fromkeys(folder for protocol in PROTOCOLS for folder in protocol.folders)
    return tuple(sorted(every, key=lambda folder: folder.template.startswith("{")))


def read_folder(path: str) -> tuple[Folder, dict[str, str]] | None:
    """Return the kind of a run folder, and the fields of its path; None if it is of no protocol.

    Args:
        path: below the output folder, with slashes.
    """
    for folder in folders():
        if (fields := folder.read(path)) is not None:
            return folder, fields
    return None


def protocol_of(folder: Folder, dataset: str) -> Protocol:
    """Return the protocol that a result counts for.

    Of several that write into such a folder it is the one for this data set alone, or the first.

    Args:
        folder: kind of the run folder.
        dataset: that the run tests on.
    """
    writing = [protocol for protocol in PROTOCOLS if folder in protocol.folders]
    own = [protocol for protocol in writing if protocol.variants and source_of(dataset)]
    return (own or writing)[0]


def source_of(variant: str) -> str:
    """Return the data set that another one is a variant of; empty if it is none."""
    return next((source for source, names in VARIANTS_OF.items() if variant in names), "")
