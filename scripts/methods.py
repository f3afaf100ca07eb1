"""The methods that scripts run, and the config that each takes: what ``configs/methods/`` says.

A file ``configs/methods/<folder of scripts>.yaml`` has these keys::

    trainer: CoOp                # registry name, and folder of configs/trainers/
    trains: yes                  # no: every protocol only tests
    protocols: [fewshot, dg]     # names of protocols that it has (default: all)
    tiny: tiny                   # config for the data sets that come with the repository
    configs:                     # of these lines the first that fits is taken
      - {protocol: base2new, dataset: imagenet, shots: [2, 4], config: vit_b16_ep50}
      - {config: vit_b16}
    variants:                    # names that CFG may give, each for lines as above
      vit_b32_fewshot:
        - {shots: 1, config: vit_b32_fewshot_ep50}

A line fits where its protocol (``configs`` of an entry of ``protocols.py``), data set and shots are
the requested ones; each may be a list, and one that is left out fits any. Where no line of a
variant fits, the name of the variant is that of the file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from protocols import GENERATED, PROTOCOLS, by_name
from support.hints import nearest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("configs", "methods")
TRAINERS = Path("configs", "trainers")
DATASETS = Path("configs", "datasets")


def one_of(name: str, names: Iterable[str], kind: str, hint: str = "") -> str:
    """Return a name after a check that it is one of several.

    Args:
        name: to look for.
        names: that there are.
        kind: what they name, for the message.
        hint: its end; the nearest name where empty.

    Raises:
        ValueError: it is not; lists those that are.
    """
    names = sorted(names)
    if name not in names:
        hint = hint or nearest(name, names)
        raise ValueError(f"no {kind} {name!r}; there are: {' '.join(names)}{hint}")
    return name


def lacks_config(dataset: str) -> str:
    """Return what to say of a data set with a file of code and none of settings; else nothing."""
    code, config = Path("datasets", f"{dataset}.py"), DATASETS / f"{dataset}.yaml"
    if not (ROOT / code).is_file() or (ROOT / config).is_file():
        return ""
    if "DATASET_REGISTRY" not in (ROOT / code).read_text("utf-8"):
        return ""
    return f"; {code} is there, but no {config}: write one like {DATASETS / 'dtd'}.yaml"


def stems(folder: Path) -> list[str]:
    """Return the names of the YAML files of a folder, which is relative to the repository."""
    return sorted(file.stem for file in (ROOT / folder).glob("*.yaml"))


@dataclass(frozen=True)
class Rule:
    """A line of ``configs`` or of a variant; a condition that is None is always met."""

    config: str
    protocol: frozenset[str] | None = None
    dataset: frozenset[str] | None = None
    shots: frozenset[str] | None = None

    def fits(self, **asked: str) -> bool:
        """Return whether ``protocol``, ``dataset`` and ``shots`` meet the conditions."""
        return all(
            getattr(self, name) is None or value in getattr(self, name)
            for name, value in asked.items()
        )


@dataclass(frozen=True)
class Method:
    """What a folder of scripts runs.

    Args:
        name: of the folder.
        trainer: registry name.
        configs: which config is taken.
        trains: whether there is anything to train.
        tiny: config for the data sets that come with the repository.
        protocols: names of the protocols that it has; a classifier that belongs to the classes of
            its training has none that tests other classes.
        variants: what names of configs stand for.
    """

    name: str
    trainer: str
    configs: tuple[Rule, ...]
    trains: bool = True
    tiny: str = "tiny"
    protocols: tuple[str, ...] = tuple(protocol.name for protocol in PROTOCOLS)
    variants: dict[str, tuple[Rule, ...]] = field(default_factory=dict)

    @property
    def scripts(self) -> list[str]:
        """Names of the scripts of its protocols, those that train for them among them."""
        own = [protocol for protocol in PROTOCOLS if protocol.name in self.protocols]
        every = [script.name for p in own for script in (p.training, *p.scripts)]
        return list(dict.fromkeys(every))

    def check_has(self, protocol: str, script: str = "") -> None:
        """Check that the method has a protocol, or a script of it.

        Raises:
            ValueError: it has not; the text says what it has.
        """
        if protocol not in self.protocols if not script else script not in self.scripts:
            raise ValueError(
                f"{self.trainer} has no {script or 'PROTOCOL ' + protocol}: its classifier belongs "
                "to the classes that it was trained with; there are: "
                f"{' '.join(self.scripts if script else self.protocols)}"
            )

    def config_file(self, config: str) -> Path:
        """Return the path of a config, relative to the repository."""
        return TRAINERS / self.trainer / f"{config}.yaml"

    def config_for(self, protocol: str, dataset: str, shots: str) -> str:
        """Return the config for a training.

        Args:
            protocol: ``configs`` of a protocol.
            dataset: that is trained on.
            shots: a number, or ``all``.

        Raises:
            ValueError: no line fits.
        """
        if dataset in GENERATED:
            return self.tiny
        for rule in self.configs:
            if rule.fits(protocol=protocol, dataset=dataset, shots=shots):
                return rule.config
        raise ValueError(
            f"{FOLDER / self.name}.yaml: no line of configs fits protocol {protocol}, data set "
            f"{dataset} and {shots} shots"
        )

    def config_named(self, name: str, protocol: str, dataset: str, shots: str) -> tuple[str, str]:
        """Return the config that CFG asks for, and what to say of it.

        Args:
            name: of a config here or upstream, with or without ``.yaml``, or path of the file.
            protocol, dataset, shots: as for :meth:`config_for`.

        Raises:
            ValueError: there is no such file.
        """
        config = name.removeprefix(f"{TRAINERS / self.trainer}/").removesuffix(".yaml")
        for rule in self.variants.get(config, ()):
            if rule.fits(protocol=protocol, dataset=dataset, shots=shots):
                config = rule.config
                break
        note = ""
        if not (ROOT / self.config_file(config)).is_file():
            table = yaml.safe_load((ROOT / "configs" / "aliases.yaml").read_text("utf-8"))
            if ours := table.get(self.trainer, {}).get(config):
                config, note = ours, f"{config} is upstream's name of {ours}"
        self.check_config(config)
        return config, note

    def check_config(self, config: str) -> None:
        """Check that there is a config of this name.

        Raises:
            ValueError: there is none.
        """
        if not (ROOT / self.config_file(config)).is_file():
            names = stems(TRAINERS / self.trainer)
            raise ValueError(
                f"no file {self.config_file(config)}; there are: {' '.join(names)}"
                f"{nearest(config, names)}"
            )


def method_names() -> list[str]:
    """Return the names of all methods with a file."""
    return stems(FOLDER)


def read_method(name: str) -> Method:
    """Return what the file of a method says.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it cannot be read, or names something unknown; names the file.
    """
    path = FOLDER / f"{name}.yaml"
    try:
        return _method(name, (ROOT / path).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@functools.lru_cache(64)  # a sweep plans many runs of a method
def _method(name: str, text: str) -> Method:
    table = yaml.safe_load(text)
    _check_keys(table, "trainer", "configs", "trains", "tiny", "protocols", "variants")
    kind: type
    for key, kind in (("trainer", str), ("configs", list)):
        if not isinstance(table.get(key), kind):
            raise ValueError(f"{key} is missing, or no {'list' if kind is list else 'name'}")
    for key, kind, what in (("trains", bool, "yes or no"), ("variants", dict, "a mapping")):
        if key in table and not isinstance(table[key], kind):
            raise ValueError(f"{key} must be {what}, not {table[key]!r}")
    if not isinstance(table.get("protocols", []), list):
        raise ValueError(f"protocols must be a list of names, not {table['protocols']!r}")
    for protocol in table.get("protocols", []):
        one_of(str(protocol), by_name(), "protocol")
    one_of(table["trainer"], (p.name for p in (ROOT / TRAINERS).iterdir()), "trainer")
    method = Method(
        **table
        | {"name": name, "configs": tuple(map(_rule, table["configs"]))}
        | {"protocols": tuple(table.get("protocols", by_name()))}
        | {"variants": {n: tuple(map(_rule, v)) for n, v in table.get("variants", {}).items()}}
    )
    variants = [rule for rules in method.variants.values() for rule in rules]
    for config in (method.tiny, *(rule.config for rule in (*method.configs, *variants))):
        method.check_config(config)
    for protocol in map(by_name().get, method.protocols):
        assert protocol is not None
        asked = {"protocol": protocol.configs, "dataset": "", "shots": ""}
        if not any(rule.fits(**asked) for rule in method.configs):
            raise ValueError(
                f"configs has no line for protocol {protocol.configs} that fits all data sets and "
                "shots: end it with such a line"
            )
    return method


def _rule(line: Any) -> Rule:
    _check_keys(line, "config", "protocol", "dataset", "shots")
    if not isinstance(line.get("config"), str):
        raise ValueError(f"config is missing in {line}")
    conditions = {}
    for key in line.keys() - {"config"}:
        values = line[key] if isinstance(line[key], list) else [line[key]]
        conditions[key] = frozenset(map(str, values))
    for protocol in conditions.get("protocol", ()):
        one_of(protocol, {p.configs for p in PROTOCOLS}, "protocol")
    for dataset in conditions.get("dataset", ()):
        one_of(dataset, stems(DATASETS), "data set")
    for shots in conditions.get("shots", ()):
        if shots != "all" and not shots.isdecimal():
            raise ValueError(f"shots must be whole numbers or all, not {shots}")
    return Rule(line["config"], **conditions)


def _check_keys(table: Any, *keys: str) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"a mapping was expected, not {table!r}")
    for key in table:
        one_of(str(key), keys, "key")


def find_method(name: str) -> Method:
    """Return the method of a name: that of its folder in any case, or that of its trainer.

    Raises:
        ValueError: there is none, or its file has an error.
    """
    names = method_names()
    if name in names:
        return read_method(name)
    methods = [read_method(n) for n in names]
    for found in (
        [method for method in methods if method.name.lower() == name.lower()],
        [method for method in methods if method.trainer.lower() == name.lower()],
    ):
        if len(found) == 1:
            return found[0]
    if len(found) > 1:
        several = " ".join(method.name for method in found)
        raise ValueError(f"several methods have the trainer {name}; name one: {several}")
    lacking = [
        folder
        for folder in (Path("scripts", name), *sorted((ROOT / TRAINERS).iterdir()))
        if folder.name.lower() == name.lower() and (ROOT / folder).is_dir()
    ]
    if lacking:
        folder = (ROOT / lacking[0]).relative_to(ROOT)
        raise ValueError(
            f"{folder}/ is there, but no {FOLDER / name.lower()}.yaml, which says what its scripts "
            f"run: write one like {FOLDER / 'coop'}.yaml (CONTRIBUTING.md)"
        )
    return read_method(one_of(name, names, "method"))
