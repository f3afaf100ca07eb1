"""Plan the calls of ``train.py`` that a call of a script makes, with their folders."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import protocols
from dassl.config import get_cfg_default, is_runtime_key, leaves
from protocols import Folder, Protocol, Script
from results.finished import EPOCHS, ITERATIONS, Settings
from support.hints import nearest, refuse_key

from .methods import DATASETS, ROOT, Method, find_method, lacks_config, stems

SEEDS = re.compile("[0-9]+(,[0-9]+)*")
POSITIVE = re.compile("[1-9][0-9]*")
#: keys that make the folder and the row of a table -> what sets them
SET_ELSEWHERE = {
    "DATASET.NUM_SHOTS": "SHOTS (fewshot.sh: by its second argument)",
    "DATASET.SUBSAMPLE_CLASSES": "the protocol",
    "SEED": "the argument SEED",
}
#: starts of keys that a method without training does not depend on
OF_TRAINING = ("OPTIM.", "TRAIN.", "DATALOADER.TRAIN_X.")
#: longest name of a folder
MAX_LABEL = 200


@dataclass(frozen=True)
class Weights:
    """Weights that a test loads: their run folder, and the script that trained them, or None."""

    folder: str
    trained_by: Script | None
    pairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A call of ``train.py``.

    Args:
        dataset: that it trains or tests on.
        seeds: if several, they are trained together.
        folder: of the results, with ``{seed}`` for the seed.
        trains: whether it trains.
        pairs: what the protocol sets.
        weights: that it tests; None if it trains, or tests a method without training.
    """

    dataset: str
    seeds: tuple[str, ...]
    folder: str
    trains: bool
    pairs: tuple[str, ...]
    weights: Weights | None

    def folder_of(self, seed: str) -> str:
        """Return the folder of a seed."""
        return self.folder.replace("{seed}", seed)


@dataclass(frozen=True)
class Plan:
    """All that a call of a script does.

    Args:
        method, script: what is run.
        config: name of the method's config.
        pairs: KEY VALUE pairs of the caller.
        runs: in order.
        trained_on: data set of the training.
        epoch: whose weights are tested; None for the best or the last ones.
        data, output: folders.
        source: what SOURCE says, if it is set and counts.
        python: the interpreter.
        notes: what there is to say beforehand.
    """

    method: Method
    script: Script
    config: str
    pairs: tuple[str, ...]
    runs: tuple[Run, ...]
    trained_on: str
    epoch: int | None
    data: str
    output: str
    source: str
    python: str
    notes: tuple[str, ...]

    def settings(self, dataset: str, pairs: Sequence[str]) -> Settings:
        """Return the settings of a run on a data set, with these pairs of the protocol."""
        return _settings(_files(self.method, self.config, dataset), (*pairs, *self.pairs))

    def command(self, run: Run, seeds: Sequence[str]) -> list[str]:
        """Return the words of a call of ``train.py``, for these seeds of a run."""
        together = len(run.seeds) > 1
        dataset_file, config_file = _files(self.method, self.config, run.dataset)
        command = [self.python, "train.py", "--root", self.data]
        command += ["--seeds" if together else "--seed", ",".join(seeds)]
        command += ["--trainer", self.method.trainer]
        command += ["--dataset-config-file", dataset_file, "--config-file", config_file]
        command += ["--output-dir", run.folder if together else run.folder_of(*seeds)]
        command += [] if run.trains else ["--eval-only"]
        if run.weights:
            command += ["--model-dir", run.weights.folder]
            if self.epoch is not None:
                command += ["--load-epoch", str(self.epoch)]
        return [*command, *run.pairs, *self.pairs]


def _files(method: Method, config: str, dataset: str) -> tuple[str, str]:
    return str(DATASETS / f"{dataset}.yaml"), str(method.config_file(config))


def _without_training(pairs: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return pairs without those that tell how to train, and the keys of the latter.

    They would give a method without training another folder, and the same results in it again.
    """
    known = {key for key, _ in leaves(get_cfg_default()) if key.startswith(OF_TRAINING)}
    kept = [pair for pair in zip(pairs[::2], pairs[1::2], strict=True) if pair[0] not in known]
    return sum(kept, ()), [key for key in pairs[::2] if key in known]


def _settings(files: Sequence[str], pairs: Sequence[str] = ()) -> Settings:
    return Settings([str(ROOT / file) for file in files], pairs)


def own_settings(pairs: Sequence[str]) -> str:
    """Return what KEY VALUE pairs add to a folder's name; empty if they set runtime keys only."""
    chosen = zip(pairs[::2], pairs[1::2], strict=False)
    name = "-".join(f"{key}={value}" for key, value in chosen if not is_runtime_key(key))
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", name)


@dataclass(frozen=True)
class Arguments:
    """The words of a call; ``datasets`` is empty where DATASET was left out."""

    datasets: tuple[str, ...]
    shots: str
    seeds: tuple[str, ...]
    epochs: str
    pairs: tuple[str, ...]


def read_arguments(
    script: Script, words: Sequence[str], default_shots: str, usage: str
) -> Arguments:
    """Return what the words of a call stand for.

    Args:
        script: that is called.
        words: its words.
        default_shots: of a script without an argument for it.
        usage: what to say where too few words are given.

    Raises:
        ValueError: a word is not what it should be.
    """
    rest, named = list(words), script.arguments.replace(" ...", "...").split()
    if named[0] == "[DATASET]" and rest and SEEDS.fullmatch(rest[0]):
        named = named[1:]
    if len(rest) < sum(name == "[DATASET]" or name[0] != "[" for name in named):
        raise ValueError(usage)
    datasets, seeds, shots, epochs = [], [], default_shots, ""
    for name in named:
        if rest and name in ("DATASET", "[DATASET]", "SHOTS", "SEED"):
            refuse_key(rest[0], name, usage)
        if name in ("DATASET", "[DATASET]"):
            datasets = [rest.pop(0)]
        elif name == "SHOTS":
            shots = rest.pop(0)
        elif name == "SEED":
            seeds = [read_seeds(rest.pop(0))]
        elif name == "[SEED...]":
            while rest and SEEDS.fullmatch(rest[0]):
                seeds.append(read_seeds(rest.pop(0)))
            seeds = seeds or ["1", "2", "3"]
            read_seeds(",".join(seeds))
        elif name == "[MAX_EPOCH]" and rest and rest[0].isdecimal():
            epochs = rest.pop(0)
            if not POSITIVE.fullmatch(epochs):
                raise ValueError(f"MAX_EPOCH must be a whole number from 1 on, not {epochs!r}")
    if shots != "all" and not POSITIVE.fullmatch(shots):
        raise ValueError(
            "SHOTS must be a whole number from 1 on, or all for every training image, "
            f"not {shots!r}"
        )
    check_pairs(rest)
    return Arguments(tuple(datasets), shots, tuple(seeds), epochs, tuple(rest))


def read_seeds(word: str) -> str:
    """Return the seeds of a word such as 1,2,3, written as folders have them.

    Raises:
        ValueError: it names none, or one twice.
    """
    if not SEEDS.fullmatch(word):
        raise ValueError(
            f"SEED must be a whole number from 0 on, or several with commas, not {word!r}"
        )
    seeds = [str(int(seed)) for seed in word.split(",")]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"SEED names a seed twice: {word}")
    return ",".join(seeds)


def check_pairs(words: Sequence[str]) -> None:
    """Check the words behind the arguments.

    Raises:
        ValueError: they are no KEY VALUE pairs, or have a key that is set otherwise.
    """
    for key in words[::2]:
        name, equals, value = key.partition("=")
        if equals:
            raise ValueError(f"{key}: write key and value as two words, {name} {value}")
        if key in SET_ELSEWHERE:
            raise ValueError(f"{key} is set by {SET_ELSEWHERE[key]}")
    if len(words) % 2:
        raise ValueError(f"a key has no value in: {' '.join(words)}")


def check_is_for_training(dataset: str) -> None:
    """Check that a data set has training images that are not its test images.

    Raises:
        ValueError: it is a variant of another one, for tests only.
    """
    if source := protocols.source_of(dataset):
        raise ValueError(
            f"{dataset} is for tests only (its images are the test images): train on {source}"
        )


def check_datasets(
    protocol: Protocol, script: Script, tested: Sequence[str], source: str, trains: bool
) -> None:
    """Check the data sets of a call.

    Args:
        protocol, script: what is called.
        tested: data sets of its runs.
        source: data set of the training.
        trains: whether the call trains on them; a training script with published weights, or of a
            method without training, only tests.

    Raises:
        ValueError: there is none of such a name, it is not one of the protocol, or the call would
            train on one that is for tests only.
    """
    if protocol.variants and not script.trains:
        for dataset in tested:
            if dataset not in protocol.targets(source):
                raise ValueError(
                    f"{dataset} is no variant of {source} ({' '.join(protocol.targets(source))}): "
                    "use xd_test.sh"
                )
    names = stems(DATASETS)
    for dataset in (*tested, source):
        if dataset not in names:
            hint = lacks_config(dataset) or nearest(dataset, names)
            raise ValueError(f"no data set {dataset}; there are: {' '.join(names)}{hint}")
    if trains:
        for dataset in tested:
            check_is_for_training(dataset)


def max_epoch(settings: Settings) -> int | None:
    """Return the epoch to test that files and pairs come to, the last one.

    None where they set iterations, or images choose the epoch: then it is the one that is kept.

    Raises:
        ValueError: it is no whole number from 1 on.
    """
    cfg, values = get_cfg_default(), settings.values()
    for key in (EPOCHS, ITERATIONS, "TEST.FINAL_MODEL"):
        if key in values:
            cfg.merge_from_list([key, values[key]])
    if cfg.OPTIM.MAX_ITERATIONS or cfg.TEST.FINAL_MODEL != "last_step":
        return None
    if cfg.OPTIM.MAX_EPOCH < 1:
        raise ValueError(f"{EPOCHS} is {cfg.OPTIM.MAX_EPOCH}: use a whole number from 1 on")
    return cfg.OPTIM.MAX_EPOCH


def _counts_steps(settings: Settings) -> bool:
    return str(settings.values().get(ITERATIONS, 0)) != "0"


def plan(method_name: str, script_name: str, words: Sequence[str], env: Mapping[str, str]) -> Plan:
    """Return all that a call of a script does.

    Args:
        method_name: folder of scripts, in any case, or registry name of a trainer.
        script_name: of one of the protocols.
        words: of the call.
        env: environment (``run.py`` documents it).

    Raises:
        ValueError: for a method, protocol, word or variable that cannot be.
    """
    method, (protocol, script) = find_method(method_name), protocols.find_script(script_name)
    method.check_has(protocol.name, script.name)
    # A script that takes the shots as an argument ignores those of the environment.
    default_shots = "all" if "SHOTS" in script.arguments else env.get("SHOTS") or "16"
    args = read_arguments(script, words, default_shots, script.usage(method.name))
    of_variant = protocols.source_of(args.datasets[0]) if script.transfers and args.datasets else ""
    source = env.get("SOURCE") or of_variant or protocols.SOURCE
    if script.trains and script.arguments.startswith("["):
        if args.datasets and env.get("SOURCE") and (source,) != args.datasets:
            raise ValueError(f"SOURCE is {source}, but {args.datasets[0]} is to be trained on")
        datasets = args.datasets or (source,)
    else:
        datasets = args.datasets or protocol.targets(source)
    trained_on = source if script.transfers else datasets[0]
    published = env.get("WEIGHTS", "")
    trains = script.trains and method.trains and not published
    check_datasets(protocol, script, datasets, trained_on, trains)
    _check_environment(method, script, env)

    asked = {"protocol": protocol.configs, "dataset": trained_on, "shots": args.shots}
    notes = []
    if env.get("CFG"):
        config, note = method.config_named(env["CFG"], **asked)
        notes += [note] if note else []
    else:
        config = method.config_for(**asked)
    pairs = args.pairs
    files = _files(method, config, trained_on)
    # The number of epochs in the file does not make another setting.
    if args.epochs and int(args.epochs) != max_epoch(_settings(files)):
        pairs = (EPOCHS, args.epochs, *pairs)
    if not method.trains:
        pairs, unread = _without_training(pairs)
        if unread:
            notes.append(f"{method.trainer} is not trained: left out is {', '.join(unread)}")
    epoch = max_epoch(_settings(files, pairs))
    if args.epochs and _counts_steps(_settings(files, pairs)):
        raise ValueError(
            f"MAX_EPOCH is given, and {config} counts training steps: give OPTIM.MAX_ITERATIONS "
            "<number> instead"
        )
    if script.trains and not script.published and not method.trains:
        notes.append(f"{method.trainer} has nothing to train; it is tested")

    fields = {
        "trainer": method.trainer,
        "config": _label(config, pairs, env.get("TAG")),
        "shots": args.shots,
        "source": source,
        "subfolder": env.get("SUBFOLDER", ""),
    }
    output = env.get("OUTPUT") or "output"
    runs = _runs(
        method,
        script,
        datasets=datasets,
        seeds=args.seeds,
        fields=fields,
        output=output,
        published=published,
        trains=trains,
    )
    return Plan(
        method=method,
        script=script,
        config=config,
        pairs=pairs,
        runs=runs,
        trained_on=trained_on,
        epoch=epoch,
        data=env.get("DATA") or "data",
        output=output,
        source=env.get("SOURCE", ""),
        python=env.get("PYTHON") or sys.executable,
        notes=tuple(notes),
    )


def _check_environment(method: Method, script: Script, env: Mapping[str, str]) -> None:
    if env.get("SUBFOLDER") and not all("subfolder" in folder.fields for folder in script.runs):
        raise ValueError(f"SUBFOLDER is not for {script.name}, whose folders have none")
    tag, levels = env.get("TAG", ""), Path(env.get("SUBFOLDER", "")).parts
    if tag and (tag != Path(tag).name or tag == ".."):
        raise ValueError(f"TAG is {tag!r}, which names no one folder: leave out slashes")
    if ".." in levels or Path(env.get("SUBFOLDER", "")).is_absolute():
        raise ValueError(f"SUBFOLDER is {env['SUBFOLDER']!r}: name folders below that of the runs")
    if env.get("WEIGHTS") and not (script.published and method.trains):
        raise ValueError("WEIGHTS is for testing what a method trained")
    if not script.trains and not script.trained_by and method.trains:
        raise ValueError(f"{script.name} is not for {method.name}, which is trained")
    data = env.get("DATA") or "data"
    if data != "data" and env.get("DRY_RUN") != "1" and not Path(data).is_dir():
        raise ValueError(f"DATA is {data}, which is no folder: correct it, or create it")


def _label(config: str, pairs: Sequence[str], tag: str | None) -> str:
    """Return the name of the folder, which tells other settings from the shipped ones."""
    own = own_settings(pairs) if tag is None else tag
    label = f"{config}-{own}" if own else config
    if len(label) > MAX_LABEL:
        raise ValueError(
            "too many KEY VALUE pairs to name a folder: set TAG=<short name>"
            if tag is None
            else f"TAG makes a folder's name of more than {MAX_LABEL} letters: shorten it"
        )
    return label


def _runs(
    method: Method,
    script: Script,
    datasets: Sequence[str],
    seeds: Sequence[str],
    fields: dict[str, str],
    output: str,
    published: str,
    trains: bool,
) -> tuple[Run, ...]:
    if not trains:  # only training has something to share
        seeds = [one for seed in seeds for one in seed.split(",")]
    folders = script.published_runs if published and script.published_runs else script.runs

    def run(folder: Folder, dataset: str, seed: str) -> Run:
        weights = None
        if published:
            path = Folder(script.published).path(shots=fields["shots"], seed=seed)
            weights = Weights(f"{published}/{path}", None)
        elif script.trained_by and method.trains:
            trained_by = protocols.scripts()[script.trained_by]
            (place,) = trained_by.runs
            trained_on = fields["source"] if script.transfers else dataset
            path = place.path(**fields, dataset=trained_on, seed=seed)
            weights = Weights(f"{output}/{path}", trained_by, _pairs(place, fields["shots"]))
        path = folder.path(**fields, dataset=dataset, seed="{seed}")
        return Run(
            dataset=dataset,
            seeds=tuple(seed.split(",")),
            folder=f"{output}/{path}",
            trains=trains,
            pairs=_pairs(folder, fields["shots"]),
            weights=weights,
        )

    return tuple(
        run(folder, dataset, seed) for seed in seeds for dataset in datasets for folder in folders
    )


def _pairs(folder: Folder, shots: str) -> tuple[str, ...]:
    """Return the pairs that a protocol sets for the runs of a folder."""
    pairs = []
    if folder.sets_shots:
        pairs += ["DATASET.NUM_SHOTS", "-1" if shots == "all" else shots]
    if folder.classes != "all":
        pairs += ["DATASET.SUBSAMPLE_CLASSES", folder.classes]
    return (*pairs, *folder.pairs)
