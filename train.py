"""Train or test one prompt learner: arguments -> config -> trainer -> train or test.

The command line and its precedence are those of CoOp's ``train.py``: built-in defaults, data set
file, trainer file, options, trailing ``KEY VALUE`` pairs; the later one wins.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from support.command_line import ROOT, add_traceback, run
from support.ending import REQUEST
from support.hints import nearest

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from adaptation.seeds import SeveralSeeds
    from dassl.engine import SimpleTrainer

# torch and everything that imports it is imported inside the functions: --help and a mistyped
# option answer at once.

# option -> config key, for the options that only set a config value
OPTION_KEYS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "device": "DEVICE",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}


def seed_list(text: str) -> list[int]:
    """Return the seeds that a word like ``1,2,3`` names.

    Raises:
        argparse.ArgumentTypeError: when it names none, one twice, or no whole number from 0 on.
    """
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,2,3")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def gpu(text: str) -> str:
    """Return the name of the device of a GPU's number.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 0 on.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return f"cuda:{int(text)}"


class PrintVersion(argparse.Action):
    """Option that prints the version, which is read when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        version = runpy.run_path(str(ROOT / "adaptation" / "version.py"))["__version__"]
        print(version)
        parser.exit()


def epilog() -> str:
    """Return the end of ``--help``: precedence, names of trainers and data sets, an example."""

    def names(pattern: str) -> str:
        found = sorted((path.stem for path in (ROOT / "configs").glob(pattern)), key=str.lower)
        return textwrap.fill(
            ", ".join(found),
            78,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )

    return f"""Later wins: defaults, data set file, trainer file, options, KEY VALUE pairs.

trainers (their settings: configs/trainers/NAME/*.yaml):
{names("trainers/*")}

data sets (configs/datasets/NAME.yaml; digits, letters, symbols and shapes come with it):
{names("datasets/*.yaml")}

example:
  python train.py --root data --seed 1 --trainer MMLoP --output-dir output/digits \\
    --dataset-config-file configs/datasets/digits.yaml \\
    --config-file configs/trainers/MMLoP/tiny.yaml DATASET.NUM_SHOTS 4
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Train or test one trainer on one data set.",
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action=PrintVersion, nargs=0, help="print the version and exit")
    add(
        "--list",
        nargs="?",
        const="",
        metavar="KIND",
        help="print what there is, with papers, and exit: methods, datasets, backbones, protocols",
    )
    add("--root", metavar="DIR", help="folder that holds the data sets")
    add("--output-dir", metavar="DIR", help="folder for the log and the checkpoints")
    add("--resume", metavar="DIR", help="resume from this folder instead of the output folder")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--seed", type=int, help="seed of a reproducible run (negative or not given: unseeded)"
    )
    either.add_argument(
        "--seeds",
        type=seed_list,
        metavar="SEED,SEED,...",
        help="train these seeds together; {seed} in other words stands for each of them, "
        "as in --output-dir output/seed{seed}",
    )
    add("--source-domains", nargs="+", metavar="NAME", help="source domains")
    add("--target-domains", nargs="+", metavar="NAME", help="target domains")
    add("--transforms", nargs="+", metavar="NAME", help="training transforms")
    add("--config-file", metavar="YAML", help="settings of the trainer")
    add("--dataset-config-file", metavar="YAML", help="settings of the data set")
    add("--trainer", metavar="NAME", help="name of the trainer, in any case")
    add(
        "--trainer-file",
        action="append",
        default=[],
        metavar="PY",
        help="Python file of your own that registers trainers or data sets; may be given again",
    )
    add(
        "--extend-cfg",
        action="append",
        default=[],
        metavar="FILE",
        help="file that declares config keys: YAML, or Python with a function extend_cfg(cfg)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU if there is one)"
    )
    where.add_argument(
        "--gpu", dest="device", type=gpu, metavar="N", help="the same as --device cuda:N"
    )
    add("--backbone", metavar="NAME", help="name of the backbone")
    add("--head", metavar="NAME", help="name of the head")
    add("--eval-only", action="store_true", help="test only")
    add("--model-dir", metavar="DIR", default="", help="run folder to load for --eval-only")
    add("--load-epoch", type=int, metavar="N", help="epoch (default: the best or the last one)")
    add("--untrained", action="store_true", help="with --eval-only: test what was never trained")
    add(
        "--deterministic",
        action="store_true",
        help="compute the same numbers each time on a GPU, too; slower",
    )
    add("--no-train", action="store_true", help="build the trainer without training it")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print results only")
    shown.add_argument("--verbose", action="store_true", help="print all that the log file gets")
    add_traceback(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values")
    return parser


def require_file(path: str, option: str) -> None:
    """Check that a config file exists.

    Args:
        path: the file.
        option: command-line option that named it.

    Raises:
        FileNotFoundError: when it does not, with the nearest name that does.
    """
    file = Path(path)
    if file.is_file():
        return
    folder, name = file.parent, file.name
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    names = sorted(entry.name for entry in folder.iterdir())
    hint = nearest(name, names) or f"; it has {', '.join(names) or 'no files'}"
    raise FileNotFoundError(f"{option}: no file {path!r}: {folder} has no {name!r}{hint}")


def resolve_alias(path: str) -> str:
    """Return the path that an alias of a config file stands for; other paths unchanged.

    The aliases are in ``aliases.yaml`` beside the folder that holds the trainers' folders.

    Args:
        path: ``<configs>/trainers/<trainer>/<name>.yaml``, or any other path.
    """
    file = Path(path)
    folder = file.absolute().parent
    table = folder.parent.parent / "aliases.yaml"
    if file.is_file() or not table.is_file():
        return path

    import yaml

    name = yaml.safe_load(table.read_text(encoding="utf-8")).get(folder.name, {}).get(file.stem)
    if name is None:
        return path
    return str(file.with_name(name + file.suffix))


def config_files(args: argparse.Namespace) -> dict[str, str]:
    """Return option -> config file, in the order in which they are merged."""
    named = {"--dataset-config-file": args.dataset_config_file, "--config-file": args.config_file}
    return {option: path for option, path in named.items() if path is not None}


def data_set_of(args: argparse.Namespace) -> str:
    """Return the registry name of the data set that files and pairs name; empty without any.

    Args:
        args: the parsed command line, its files checked.
    """
    from dassl.config import values_of_file

    files = map(resolve_alias, config_files(args).values())
    named = [values_of_file(path).get("DATASET.NAME", "") for path in files]
    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    return pairs.get("DATASET.NAME") or str(next(filter(None, reversed(named)), ""))


def given_keys(args: argparse.Namespace) -> dict[str, str]:
    """Return config key -> what set it: a file, an option, or the ``KEY VALUE`` pairs.

    Of what a file sets for the data set alone, ``_DATASETS_`` stands behind the file.

    Args:
        args: the parsed command line, its files checked.
    """
    from dassl.config import DATA_SETS_KEY, keys_of_data_set, keys_of_file

    given: dict[str, str] = {}
    data_set = data_set_of(args)
    for path in map(resolve_alias, config_files(args).values()):
        given |= dict.fromkeys(keys_of_file(path, data_set), path)
        own = keys_of_data_set(path, data_set)
        given |= dict.fromkeys(own, f"{path}, {DATA_SETS_KEY}")
    for option, key in OPTION_KEYS.items():
        if getattr(args, option) is not None:
            given[key] = f"--{option.replace('_', '-')}"
    return given | dict.fromkeys(args.opts[::2], "KEY VALUE")


def check_opts(opts: list[str], cfg: CfgNode) -> None:
    """Check that the trailing words are ``KEY VALUE`` pairs.

    Args:
        opts: the words after the options.
        cfg: the config; one of its keys in the place of a value tells that the value is missing.

    Raises:
        ValueError: when a key has no value or is joined to it, or an option comes after the pairs.
    """
    for word in opts:
        if word.startswith("--"):
            raise ValueError(f"{word} comes after the KEY VALUE pairs: put options before them")
    sections = tuple(f"{name}." for name, node in cfg.items() if isinstance(node, dict))
    for index in range(0, len(opts), 2):
        key, *value = opts[index : index + 2]
        name, is_pair, rest = key.partition("=")
        if is_pair and name.split(".")[0] in cfg:
            raise ValueError(f"{key} is one word: write KEY VALUE, here {name} {rest or 'VALUE'}")
        if not key or not value or value[0].startswith(sections):
            raise ValueError(
                f"KEY VALUE pairs: {key or 'an empty word'} has no value (in {' '.join(opts)!r}); "
                "is a shell variable unset?"
            )


def check_method_keys(keys: Iterable[str], trainer: str, own: str | None) -> None:
    """Check that no setting is meant for another method, which this one would not read.

    Args:
        keys: the config keys that files and command line set.
        trainer: name of the trainer.
        own: its node under ``TRAINER``; None for a trainer that names none, which may read any.

    Raises:
        ValueError: when a key belongs to another node.
    """
    for key in keys:
        section, *path = key.split(".")
        if own and section == "TRAINER" and len(path) > 1 and path[0] != own:
            raise ValueError(
                f"{key} is a setting of another method: {trainer} reads TRAINER.{own}.* only; "
                "change --trainer or leave the key out"
            )


def add_own_files(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Register what the user's own files hold, and declare the config keys that they name.

    Args:
        args: the parsed command line.
        cfg: config with the keys of this toolbox.

    Raises:
        FileNotFoundError: for files that do not exist.
        ValueError: for files that cannot be used; names the option.
    """
    from dassl.engine.own_files import declare_keys, load_own_file

    option = "--trainer-file"
    try:
        for path in args.trainer_file:
            declares = load_own_file(path).declare(cfg)
            if not declares and not args.extend_cfg:
                print(f"Note: {path} declares no config keys; --extend-cfg FILE does so")
        option = "--extend-cfg"
        for path in args.extend_cfg:
            declare_keys(cfg, path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def print_listing(args: argparse.Namespace) -> None:
    """Print what there is to choose from, what the user's own files register included."""
    from dassl.config import get_cfg_default
    from scripts.listing import listing

    add_own_files(args, get_cfg_default())
    print(listing(args.list))


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the frozen config of a run.

    Args:
        args: the parsed command line.

    Raises:
        KeyError: for unknown config keys.
        ValueError: for values of the wrong type, settings of another method, unknown trainers or
            data sets, and a training on a data set that is for tests only.
        FileNotFoundError: for config files or a folder to resume from that do not exist.
    """
    import datasets
    import trainers
    from dassl.config import data_sets_of_file, get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY, check_is_for_training
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.going_on import saved_in

    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    add_own_files(args, cfg)
    for option, name in config_files(args).items():
        path = resolve_alias(name)
        if path != name:
            print(f"{name} is another name of {path} (aliases.yaml)")
        require_file(path, option)
        for data_set in data_sets_of_file(path):
            DATASET_REGISTRY.check(data_set, f"{path}: _DATASETS_")
    data_set = data_set_of(args)
    for name in config_files(args).values():
        cfg.merge_from_file(resolve_alias(name), data_set)
    for option, key in OPTION_KEYS.items():
        value = getattr(args, option)
        if value is not None:
            cfg.merge_from_list([key, value])
    check_opts(args.opts, cfg)
    for key, value in zip(args.opts[::2], args.opts[1::2], strict=True):
        # scripts and folders have a word for all training images
        cfg.merge_from_list([key, -1 if (key, value) == ("DATASET.NUM_SHOTS", "all") else value])

    cfg.TRAINER.NAME = TRAINER_REGISTRY.resolve(cfg.TRAINER.NAME)  # mmlop is MMLoP
    if args.trainer is not None:
        args.trainer = cfg.TRAINER.NAME
    # Checked here as well as where they are built, so that a typo leaves no log behind.
    for name, option, registry in (
        (cfg.TRAINER.NAME, "--trainer", TRAINER_REGISTRY),
        (cfg.DATASET.NAME, "--dataset-config-file", DATASET_REGISTRY),
    ):
        names = registry.registered_names()
        if not name:
            raise ValueError(f"{option} is missing; it can name {', '.join(sorted(names))}")
        registry.check(name, option)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    check_method_keys(given_keys(args), cfg.TRAINER.NAME, getattr(trainer, "node", None))
    # the engine checks it, too; here nothing has been written
    if getattr(trainer, "trains", True) and not (args.eval_only or args.no_train):
        check_is_for_training(DATASET_REGISTRY.get(cfg.DATASET.NAME))
    if cfg.RESUME and not Path(cfg.RESUME).is_dir():
        raise FileNotFoundError(f"--resume: no folder {cfg.RESUME}")
    if cfg.RESUME and not saved_in(cfg.RESUME):
        raise FileNotFoundError(
            f"--resume: {cfg.RESUME} is no run folder with a checkpoint; without the option a run "
            "resumes from its output folder, or starts there"
        )
    if args.model_dir and not args.eval_only:
        raise ValueError(
            "--model-dir is read with --eval-only alone: to resume a run use --resume, to "
            "start from weights MODEL.INIT_WEIGHTS"
        )
    if args.untrained and (args.model_dir or not args.eval_only):
        raise ValueError("--untrained goes with --eval-only, and without --model-dir")
    if args.load_epoch is not None and not args.model_dir:
        raise ValueError("--load-epoch needs the run folder that holds the model: --model-dir")
    share_among_processes(args, cfg)
    cfg.freeze()
    return cfg


def share_among_processes(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Check that the processes that ``torchrun`` started can share the run, and set what they need.

    Args:
        args: the parsed command line.
        cfg: its config, whose views of images become seeded.

    Raises:
        ValueError: they cannot share it.
    """
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.ranks import check_can_share
    from dassl.utils import ranks

    if ranks.started() == 1:
        return
    if args.seeds is not None:
        raise ValueError(
            f"--seeds trains seeds together in one process, and torchrun started "
            f"{ranks.started()}: run one seed with --seed, or leave out torchrun"
        )
    if ":" in cfg.DEVICE:
        raise ValueError(
            f"DEVICE is {cfg.DEVICE}, one GPU, and torchrun started {ranks.started()} processes, "
            "each on the GPU of its number: leave it out; CUDA_VISIBLE_DEVICES says which GPUs"
        )
    if args.eval_only:
        return
    key = "INPUT.SEEDED_VIEWS"
    if not cfg.INPUT.SEEDED_VIEWS and key not in given_keys(args):
        cfg.INPUT.SEEDED_VIEWS = True
        print(f"Note: {ranks.started()} processes share this run, so {key} is True")
    check_can_share(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), cfg)


def print_settings(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Log the arguments, the config (of this trainer only) and the environment; print what runs."""
    from dassl.config import clean_cfg
    from dassl.engine import config_node
    from dassl.utils import collect_env_info, print_detail
    from results.logs import WRITES_RECORD

    print_detail("***************\n** Arguments **\n***************")
    for key, value in sorted(vars(args).items()):
        print_detail(f"{key}: {value}")
    print_detail(WRITES_RECORD)
    shown = cfg.clone()
    shown.defrost()
    clean_cfg(shown, cfg.TRAINER.NAME, config_node(cfg.TRAINER.NAME))
    print_detail(f"************\n** Config **\n************\n{shown}")
    print_detail(f"Collecting env info ...\n** System info **\n{collect_env_info()}\n")
    seed = f"seed {cfg.SEED}" if cfg.SEED >= 0 else "no seed"
    print(
        f"{cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, {seed}, in {cfg.OUTPUT_DIR}: log.txt there has "
        "the settings and the environment",
        flush=True,
    )


def console_level(args: argparse.Namespace) -> int:
    """Return how much of a run the console shows."""
    from dassl.utils import logger

    return logger.QUIET if args.quiet else logger.VERBOSE if args.verbose else logger.NORMAL


def build(args: argparse.Namespace, cfg: CfgNode) -> SimpleTrainer:
    """Return the trainer the command line asks for; with ``--eval-only``, its weights loaded.

    Args:
        args: the parsed command line.
        cfg: its config.
    """
    import torch

    from adaptation.recording import keep_record
    from clip.initial_draws import initial_draws
    from dassl.engine import build_trainer
    from dassl.utils import (
        device_of_run,
        print_detail,
        ranks,
        set_random_seed,
        setup_logger,
        use_deterministic_algorithms,
    )

    ranks.join(device_of_run(cfg).type == "cuda")
    if ranks.is_main():
        setup_logger(cfg.OUTPUT_DIR, console_level(args))
    if cfg.SEED >= 0:
        print_detail(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if args.deterministic:
        use_deterministic_algorithms()
    elif device_of_run(cfg).type == "cuda":
        torch.backends.cudnn.benchmark = True
    print_settings(args, cfg)
    with initial_draws(cfg.MODEL.OPENAI_DRAWS):  # trainers of one's own build CLIP themselves
        trainer = build_trainer(cfg)
    if args.eval_only:
        check_trained(args, cfg, trainer)
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    if ranks.is_main():
        keep_record(trainer, cfg, vars(args), given_keys(args))
    return trainer


def check_trained(args: argparse.Namespace, cfg: CfgNode, trainer: SimpleTrainer) -> None:
    """Check that a test has trained weights, or that untrained ones are asked for.

    Args:
        args: the parsed command line.
        cfg: its config.
        trainer: built from it; without models of its own there is nothing to train.

    Raises:
        ValueError: it would test weights that were never trained.
    """
    given = args.model_dir or args.untrained or cfg.MODEL.INIT_WEIGHTS
    if not given and trainer.get_model_names():
        raise ValueError(
            f"--eval-only tests what {cfg.TRAINER.NAME} learned, and no --model-dir names the run "
            "folder that holds it; --untrained tests the method as it is before any training"
        )


def build_runs(
    args: argparse.Namespace, words: list[str], cfgs: list[CfgNode]
) -> SimpleTrainer | SeveralSeeds:
    """Return the trainer of the command line, or one that trains several seeds together.

    Args:
        args: the parsed command line.
        words: its words.
        cfgs: receives the configs of the runs before anything is built.

    Raises:
        ValueError: when the seeds would share a folder, or cannot be trained together.
    """
    if args.seeds is None:
        cfgs.append(setup_cfg(args))
        return build(args, cfgs[0])

    from adaptation.seeds import SeveralSeeds, check_trains_together
    from dassl.engine import TRAINER_REGISTRY

    runs = {}
    for seed in args.seeds:
        args = build_parser().parse_args([word.replace("{seed}", str(seed)) for word in words])
        args.seed = seed
        cfg = setup_cfg(args)
        if cfg.SEED != seed:
            raise ValueError(f"--seeds: SEED {cfg.SEED} among the KEY VALUE pairs sets all seeds")
        runs[seed] = args, cfg
    folders = {str(Path(cfg.OUTPUT_DIR).absolute()) for _, cfg in runs.values()}
    if len(folders) < len(runs):
        raise ValueError(
            f"--seeds: the seeds would share the output folder {cfg.OUTPUT_DIR!r}: put {{seed}} "
            "into --output-dir, as in output/seed{seed}"
        )
    if not args.eval_only:
        check_trains_together(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), cfg)
    cfgs += [cfg for _, cfg in runs.values()]
    return SeveralSeeds({seed: partial(build, *run) for seed, run in runs.items()})


def interruption(args: argparse.Namespace, cfgs: Sequence[CfgNode]) -> str:
    """Return the line that signals end with: what is saved, and what to do to resume.

    Args:
        args: the parsed command line.
        cfgs: of the runs as far as they are set up.
    """
    if args.eval_only or not cfgs:
        return "interrupted; the same command starts again"
    from dassl.engine.going_on import saved_in

    saved = [path for cfg in cfgs for path in saved_in(cfg.OUTPUT_DIR)]
    if not saved:
        return "interrupted before anything was saved; the same command starts again"
    same = "the same command without --resume" if cfgs[0].RESUME else "the same command"
    return f"interrupted; {same} continues from what is saved: {', '.join(sorted(saved))}"


def ask_for_large_pages() -> None:
    """Have PyTorch ask Linux for large pages; effective before it first takes memory.

    Large tensors then start at pages of their own, and the heap has fewer holes between them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: 0; 2 for settings that cannot work and images that cannot be read, 1 for what
        nobody foresaw. 130 after Ctrl-C and 75 after SIGTERM or SIGUSR1, when the step is finished
        and saved; the same command resumes.
    """
    ask_for_large_pages()
    words = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(words)
    cfgs: list[CfgNode] = []

    def act() -> None:
        with REQUEST.signals():
            train_or_test()

    if args.list is not None:
        return run(lambda: print_listing(args), args.traceback)

    def train_or_test() -> None:
        from dassl.utils import ranks

        ranks.silence_others()
        trainer = build_runs(args, words, cfgs)
        if args.no_train and not args.eval_only:
            return
        if args.eval_only:
            trainer.test()
        else:
            trainer.train()
        if args.seeds is None:
            trainer.run_notes.on_end()  # type: ignore[union-attr]  # one trainer
        ranks.barrier()  # torchrun ends all processes when one of them ends badly

    return run(act, args.traceback, lambda: interruption(args, cfgs))


if __name__ == "__main__":
    REQUEST.ends_process = True
    sys.exit(main())
