"""The calls of run.sh that a sweep makes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import protocols

# The words of one call of run.sh: method, protocol and arguments.
Call = tuple[str, ...]


class Asked(Protocol):
    """What is swept over; the first three are lists in one text, ``opts`` are KEY VALUE pairs."""

    methods: str
    datasets: str
    seeds: str
    opts: Sequence[str]


@dataclass
class Chain:
    """A training, and the calls that test what it trained, if any."""

    train: Call
    tests: list[Call] = field(default_factory=list)

    def __len__(self) -> int:
        return 1 + len(self.tests)

    @property
    def calls(self) -> list[Call]:
        return [self.train, *self.tests]


def words(text: str) -> list[str]:
    """Return the words of a list given as one argument, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def numbers(text: str, kind: str, or_word: str = "") -> list[str]:
    """Return the words of a list of whole numbers, and of the word ``or_word``.

    Raises:
        ValueError: for other words.
    """
    for word in words(text):
        if word != or_word and not re.fullmatch("[0-9]+", word):
            also = f" or {or_word!r}" if or_word else ""
            raise ValueError(f"{kind} must be whole numbers{also}, not {word!r}")
    return words(text)


def plan(args: Asked, env: dict[str, str]) -> list[Chain]:
    """Return all calls that are asked for.

    Args:
        args: what is swept over.
        env: the environment; SOURCE is set in it where models move between embedded data sets.

    Raises:
        ValueError: for a protocol, method, data set or number that cannot be.
    """
    from scripts.methods import DATASETS, find_method, lacks_config, one_of, stems
    from scripts.planning import check_is_for_training

    every = protocols.by_name()
    protocol = every[one_of(env.get("PROTOCOL") or next(iter(every)), every, "PROTOCOL")]
    train = protocol.training
    there, datasets = stems(DATASETS), words(args.datasets)
    if protocol.transfers and not (env.get("DATA") or env.get("SOURCE")):
        if not datasets:
            env["SOURCE"] = protocols.EMBEDDED_SOURCE
        elif protocol.variants:
            env["SOURCE"] = protocols.source_of(datasets[0])
    source = one_of(env.get("SOURCE") or protocols.SOURCE, there, "SOURCE")
    if not datasets:
        if protocol.variants or env.get("DATA"):
            datasets = list(protocol.targets(source))
        elif protocol.transfers:
            datasets = [name for name in protocols.EMBEDDED if name != source]
        else:
            datasets = list(protocols.QUICK)
    for name in datasets:
        known = protocol.targets(source) if protocol.variants else there
        one_of(name, known, "data set", lacks_config(name))
    seeds = numbers(args.seeds, "SEEDS") or ["1", "2", "3"]
    if one_of(env.get("TOGETHER") or "0", ("0", "1"), "TOGETHER") == "1":
        seeds = [",".join(seeds)]
    shots = [""]
    if "SHOTS" in train.arguments:
        shots = numbers(env.get("SHOTS") or "1 2 4 8 16", "SHOTS", "all")

    found = [find_method(name) for name in words(args.methods)]
    for method in found:
        method.check_has(protocol.name)
    methods = [method.name for method in found]
    sources = [source] if protocol.transfers else datasets
    if any(method.trains for method in found) and not env.get("WEIGHTS"):
        for name in sources:
            check_is_for_training(name)
    chains = []
    for name, trained_on, number, seed in itertools.product(methods, sources, shots, seeds):
        rest = (*filter(None, [number]), seed, *args.opts)
        tests = [
            (name, test.name, dataset, *rest)
            for test in protocol.tests
            for dataset in (datasets if protocol.transfers else [trained_on])
        ]
        chains.append(Chain((name, train.name, trained_on, *rest), tests))
    return chains


def check_settings(chains: Iterable[Chain], env: Mapping[str, str]) -> None:
    """Check the settings of every method once, as its runs will: they would all be refused.

    Args:
        chains: all calls.
        env: environment of the calls; this process is in the repository.

    Raises:
        ValueError: KEY VALUE pairs or variables cannot be.
    """
    from dassl.config import get_cfg_default, leaves
    from scripts.planning import plan as plan_call

    firsts: dict[str, Call] = {}
    for chain in chains:
        firsts.setdefault(chain.train[0], chain.train)
    cfg = get_cfg_default()
    # keys that need neither a method's own nor torch, which takes seconds to import
    common = {key for key, _ in leaves(cfg) if not key.startswith("TRAINER.")}
    for method, script, *words in firsts.values():
        planned = plan_call(method, script, words, env)
        try:
            if common.issuperset(planned.pairs[::2]):
                cfg.merge_from_list(planned.pairs)
                continue
            import train

            run = planned.runs[0]
            command = planned.command(run, run.seeds)
            train.setup_cfg(train.build_parser().parse_args(command[2:]))
        except ModuleNotFoundError:  # PYTHON, which the runs take, may be another that has it
            continue
        except KeyError as error:  # a key that there is not
            raise ValueError(str(error)) from error


def title(call: Call) -> str:
    """Return a call's method, protocol, data set and numbers."""
    method, name, dataset, *rest = call
    if "SHOTS" in protocols.find_script(name)[1].arguments:
        return f"{method} {name} {dataset} {rest[0]} shots seed {rest[1]}"
    return f"{method} {name} {dataset} seed {rest[0]}"
