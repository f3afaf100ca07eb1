"""The command line: precedence, the values that upstream loses, and what bad input gets."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import train
from adaptation.version import __version__
from dassl.engine import TRAINER_REGISTRY, config_node

ROOT = Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path):
    """A data set file and a trainer file that set some of the same keys."""
    data, method = tmp_path / "data.yaml", tmp_path / "method.yaml"
    data.write_text("DATASET: {NAME: EuroSAT, NUM_SHOTS: 1, ROOT: data}\nSEED: 1\n")
    method.write_text(
        "DATASET: {NUM_SHOTS: 2}\nSEED: 2\nOUTPUT_DIR: method\nOPTIM: {LR: 1, MAX_EPOCH: 7}\n"
        "TRAINER: {NAME: CoOp}\n"
    )
    return ["--dataset-config-file", str(data), "--config-file", str(method)]


def setup(*words: str):
    return train.setup_cfg(train.build_parser().parse_args(words))


def error_of(capsys, *words: str) -> str:
    """The one line that a command which cannot work prints."""
    assert train.main([*words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_later_settings_win(files):
    cfg = setup(*files)
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("EuroSAT", "data")
    assert (cfg.DATASET.NUM_SHOTS, cfg.OUTPUT_DIR) == (2, "method")
    assert cfg.is_frozen()
    cfg = setup(*files, "--root", "option", "--output-dir", "option", "--trainer", "MMLoP")
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.TRAINER.NAME) == ("option", "option", "MMLoP")
    cfg = setup(*files, "--root", "option", "DATASET.ROOT", "pair", "DATASET.NUM_SHOTS", "-1")
    assert (cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS) == ("pair", -1)
    assert setup(*files, "DATASET.NUM_SHOTS", "all").DATASET.NUM_SHOTS == -1


def test_what_set_a_key_is_known(files):
    method = files[-1]
    with open(method, "a", encoding="utf-8") as file:
        file.write("_DATASETS_: {EuroSAT: {OPTIM: {LR: 3, NAME: adam}}, UCF101: {SEED: 4}}\n")
    words = [*files, "--seed", "5", "OPTIM.NAME", "sgd"]
    given = train.given_keys(train.build_parser().parse_args(words))
    assert given["DATASET.ROOT"] == files[1]
    assert given["OPTIM.MAX_EPOCH"] == method
    assert given["OPTIM.LR"] == f"{method}, _DATASETS_"
    assert (given["SEED"], given["OPTIM.NAME"]) == ("--seed", "KEY VALUE")


@pytest.mark.parametrize(
    ("words", "seed"),
    [([], 2), (["--seed", "0"], 0), (["--seed", "-1"], -1), (["--seed", "3", "SEED", "0"], 0)],
)
def test_seed_is_what_was_given(files, words, seed):
    assert setup(*files, *words).SEED == seed


def test_without_a_seed_a_run_is_unseeded():
    cfg = setup("--trainer", "CoOp", "DATASET.NAME", "EuroSAT")
    assert cfg.SEED == -1


def test_every_option_reaches_its_key(files):
    cfg = setup(
        *files,
        *("--source-domains", "a", "b", "--target-domains", "c"),
        *("--transforms", "random_flip", "normalize", "--backbone", "RN50", "--head", "mlp"),
    )
    assert list(cfg.DATASET.SOURCE_DOMAINS) == ["a", "b"]
    assert list(cfg.DATASET.TARGET_DOMAINS) == ["c"]
    assert list(cfg.INPUT.TRANSFORMS) == ["random_flip", "normalize"]
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("RN50", "mlp")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--trainer", "COOPP"], ["--trainer", "'COOPP'", "did you mean 'CoOp'?"]),
        (["--trainer", ""], ["--trainer is missing", "MMLoP"]),
        (["DATASET.NAME", "EuroSat"], ["--dataset-config-file", "did you mean 'EuroSAT'?"]),
        (["DATASET.NUM_SHOT", "4"], ["DATASET.NUM_SHOT", "did you mean DATASET.NUM_SHOTS?"]),
        (["TRAINER.MMLP.RANK", "4"], ["TRAINER.MMLP.RANK", "did you mean TRAINER.MMLOP.RANK?"]),
        (["TRAINER.MAPLE.N_CTX", "2"], ["TRAINER.MAPLE.N_CTX", "CoOp reads TRAINER.COOP.* only"]),
        (["DATASET.NUM_SHOTS", "four"], ["DATASET.NUM_SHOTS", "'four'", "int"]),
        (["DATASET.NUM_SHOTS"], ["DATASET.NUM_SHOTS has no value", "shell variable"]),
        (["DATASET.NUM_SHOTS", ""], ["DATASET.NUM_SHOTS"]),
        (["OPTIM.LR=0.01"], ["OPTIM.LR=0.01 is one word", "here OPTIM.LR 0.01"]),
        (["SEED=1", "OPTIM.LR", "0.01"], ["SEED=1 is one word", "here SEED 1"]),
        (["SEED", "1", "OPTIM.LR=", "0.01"], ["OPTIM.LR= is one word", "here OPTIM.LR VALUE"]),
        (["DATASET.TEMPLATES", "a photo of a {}."], ["takes a list", "\"['a photo of a {}.']\""]),
        (["SEED", "OPTIM.LR", "0.1"], ["SEED has no value", "shell variable"]),
        (["", "4"], ["an empty word has no value"]),
        (["SEED", "4", "--eval-only"], ["--eval-only comes after the KEY VALUE pairs"]),
        (["--resume", "no/such/run"], ["--resume: no folder no/such/run"]),
        (["--resume", "."], ["--resume: . is no run folder with a checkpoint"]),
        (["--model-dir", "run"], ["--model-dir is read with --eval-only alone", "--resume"]),
        (["--eval-only", "--load-epoch", "2"], ["--load-epoch needs", "--model-dir"]),
        (["--untrained"], ["--untrained goes with --eval-only"]),
        (["--eval-only", "--untrained", "--model-dir", "run"], ["--untrained goes", "--model-dir"]),
    ],
)
def test_bad_settings_get_one_line(files, capsys, words, parts):
    line = error_of(capsys, *files, *words)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("method", sorted(p.name for p in (ROOT / "configs/trainers").iterdir()))
def test_config_of_one_method_for_another(method, capsys):
    """Zero-shot CLIP has no settings that another file could be mistaken for."""
    other = "CoOp" if method == "MMLoP" else "MMLoP"
    words = ["--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")]
    words += ["--config-file", str(ROOT / f"configs/trainers/{other}/tiny.yaml")]
    words += ["--trainer", method]
    if method == "ZeroshotCLIP":
        assert setup(*words).TRAINER.NAME == method
    else:
        line = error_of(capsys, *words)
        assert f"TRAINER.{config_node(other)}." in line
        assert f"{method} reads TRAINER.{config_node(method)}.* only" in line


@pytest.mark.parametrize("words", [["--trainer", "coop"], ["TRAINER.NAME", "COOP"]])
def test_a_trainer_is_found_in_any_case(files, words):
    args = train.build_parser().parse_args([*map(str, files), *words])
    assert train.setup_cfg(args).TRAINER.NAME == "CoOp"
    assert args.trainer in ("CoOp", None)  # as the log has it


def test_every_setting_of_the_method_is_logged(files, method_with_a_node_of_its_own, capsys):
    words = ("--trainer", method_with_a_node_of_its_own, *files, "TRAINER.KG.WEIGHT", "3")
    args = train.build_parser().parse_args(words)
    train.print_settings(args, train.setup_cfg(args))
    shown = capsys.readouterr().out
    assert "  KG:\n" in shown and "    WEIGHT: 3.0\n" in shown
    assert "COOP" not in shown


@pytest.mark.parametrize("option", ["--config-file", "--dataset-config-file"])
def test_missing_file_names_the_nearest(tmp_path, capsys, option):
    (tmp_path / "MMLoP").mkdir()
    (tmp_path / "MMLoP" / "vit_b16.yaml").write_text("")
    line = error_of(capsys, option, str(tmp_path / "MMLoP" / "vitb16.yaml"))
    assert option in line
    assert "did you mean vit_b16.yaml?" in line
    line = error_of(capsys, option, str(tmp_path / "mmlop" / "sub" / "vit_b16.yaml"))
    assert f"{tmp_path} has no 'mmlop'; did you mean MMLoP?" in line


@pytest.mark.parametrize(
    ("trainer", "alias", "name"),
    [
        (trainer, alias, name)
        for trainer, names in yaml.safe_load((ROOT / "configs/aliases.yaml").read_text()).items()
        for alias, name in names.items()
    ],
)
def test_upstream_name_of_a_file(capsys, monkeypatch, trainer, alias, name):
    folder = f"configs/trainers/{trainer}"
    assert not (ROOT / folder / f"{alias}.yaml").exists()
    monkeypatch.chdir(ROOT)
    words = ("--trainer", trainer, "DATASET.NAME", "EuroSAT", "--config-file")
    want = setup(*words[4:], f"{folder}/{name}.yaml", *words[:4])
    assert capsys.readouterr().out == ""
    got = setup(*words[4:], f"{folder}/{alias}.yaml", *words[:4])
    assert got == want
    note = f"{folder}/{alias}.yaml is another name of {folder}/{name}.yaml (aliases.yaml)\n"
    assert capsys.readouterr().out == note
    monkeypatch.chdir(ROOT / folder)  # the table is found from anywhere
    assert setup(*words[4:], f"{alias}.yaml", *words[:4]) == want


def test_a_name_in_no_table_is_missing(capsys):
    file = ROOT / "configs/trainers/VPT/vit_b16_c2_ep5_batch4_5.yaml"
    assert "has no 'vit_b16_c2_ep5_batch4_5.yaml'" in error_of(capsys, "--config-file", str(file))


def test_broken_file_is_named(tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_text("OPTIM: [")
    assert str(file) in error_of(capsys, "--config-file", str(file))
    file.write_text("OPTIM:\n  LRR: 1\n")
    line = error_of(capsys, "--config-file", str(file))
    assert str(file) in line
    assert "did you mean OPTIM.LR?" in line


def test_traceback_on_request(files):
    with pytest.raises(ValueError, match="has no value"):
        train.main(["--traceback", *files, "DATASET.NUM_SHOTS"])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--output-dir", "out"], ["--seeds", "share the output folder 'out'", "seed{seed}"]),
        (["OUTPUT_DIR", "out/{seed}", "SEED", "5"], ["--seeds", "SEED 5"]),
        (["OUTPUT_DIR", "out/{seed}", "OPTIM.CUDA_GRAPH", "True"], ["--seeds", "OPTIM.CUDA_GRAPH"]),
        (["--output-dir", "{seed}", "--trainer", "ZeroshotCLIP"], ["ZeroshotCLIP", "--seed"]),
        (["--output-dir", "{seed}", "--resume", "no/{seed}"], ["--resume: no folder no/1"]),
    ],
)
def test_seeds_that_cannot_be_trained_together(capsys, words, parts):
    settings = ["--dataset-config-file", str(ROOT / "configs/datasets/eurosat.yaml")]
    line = error_of(capsys, "--seeds", "1,2", *settings, "--trainer", "CoOp", *words)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("word", ["", "1,", "1,x", "-1,2", "2,2"])
def test_lists_that_name_no_seeds(capsys, word):
    with pytest.raises(SystemExit, match="2"):
        train.main([f"--seeds={word}"])
    assert "argument --seeds: " in capsys.readouterr().err


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without large pages"
)
def test_runs_ask_for_large_pages():
    """Read off what Linux says of the memory of a process that starts as ``train.py`` does."""
    lines = [
        "import train",
        "train.ask_for_large_pages()",
        "import torch",
        "tensor = torch.ones(10**7)",
        "flags = [line.split() for line in open('/proc/self/smaps') if line.startswith('VmFlags')]",
        "print(sum('hg' in words for words in flags))",
    ]

    def advised(**environment: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert advised() > 0
    assert advised(THP_MEM_ALLOC_ENABLE="0") == 0, "what the user says counts"


def command(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "train.py", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "--dataset-config-file" in done.stdout
    shipped = [
        name
        for name in TRAINER_REGISTRY.registered_names()
        if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
    ]
    shipped.remove("ZeroshotCLIP2")  # has the settings of ZeroshotCLIP
    for name in (*shipped, "digits", "oxford_pets", "imagenet_r"):
        assert re.search(rf"\b{name}\b", done.stdout), name
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in modules
    assert not {"torch", "numpy", "dassl", "clip"} & modules


def test_the_example_of_the_help_is_a_command_that_works(monkeypatch, capsys):
    text = train.build_parser().format_help()
    example = text[text.index("python train.py --root") :].replace("\\\n", " ")
    monkeypatch.chdir(ROOT)
    cfg = setup(*shlex.split(example)[2:])
    assert (cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS) == ("MMLoP", "Digits", 4)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_load_epoch_needs_a_number():
    done = command("--load-epoch")
    assert done.returncode == 2
    assert "--load-epoch" in done.stderr


def test_missing_data_set_stops_at_once(tmp_path):
    done = command(
        *("--trainer", "CoOp", "--root", tmp_path, "--output-dir", tmp_path / "out", "--seed", 0),
        *("--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml"),
        *("--config-file", ROOT / "configs/trainers/CoOp/vit_b16.yaml"),
    )
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "eurosat") in done.stderr
    # What the run was is in its log, without the other trainers' settings; the screen says where.
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "seed: 0" in log
    assert "** System info **" in log
    assert "COOP:" in log
    assert "MMLOP:" not in log
    assert done.stdout.startswith(f"CoOp on EuroSAT, seed 0, in {tmp_path / 'out'}: log.txt there ")
    assert len(done.stdout.splitlines()) < 5


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--backbone", "tinny"], ["'tinny'", "tiny"]),
        (["--backbone", "/no/such/file.pt"], ["/no/such/file.pt"]),
        (["TRAINER.MMLOP.PROMPT_DEPTH", "13"], ["PROMPT_DEPTH", "13", "12"]),
        (["TRAINER.MMLOP.RANK", "0"], ["RANK", "0"]),
        (["--eval-only", "--model-dir", "no/such/run"], ["no/such/run", "--model-dir"]),
        (["--eval-only"], ["what MMLoP learned", "--model-dir", "--untrained"]),
        # the first step finds it
        (["MODEL.MEMORY_GB", "0.001"], ["MODEL.MEMORY_GB is 0.001", "training step of 16 images"]),
    ],
)
def test_what_cannot_be_built_gets_one_line(words, parts, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the logger takes its place
    options = [
        *("--trainer", "MMLoP", "--root", str(data_root), "--output-dir", str(tmp_path)),
        *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
        *("--config-file", str(ROOT / "configs/trainers/MMLoP/tiny.yaml"), "--seed", "0"),
    ]
    assert train.main([*options, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def interrupted(monkeypatch, capsys, *words: str) -> str:
    """The line that a run ends with when Ctrl-C comes as soon as it is set up."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "build", stop)
    assert train.main([*words]) == 130
    return capsys.readouterr().err.strip()


def test_ctrl_c_says_what_is_saved(files, tmp_path, monkeypatch, capsys):
    out = ["--output-dir", str(tmp_path / "out")]
    line = interrupted(monkeypatch, capsys, *files, *out)
    assert line.startswith("interrupted before anything was saved; ")
    assert "the same command starts again" in line
    assert "starts again" in interrupted(monkeypatch, capsys, *files, *out, "--eval-only")

    folder = tmp_path / "out" / "prompt_learner"
    folder.mkdir(parents=True)
    (folder / "model.pth.tar-5").touch()
    (folder / "checkpoint").write_text("model.pth.tar-5\n")
    line = interrupted(monkeypatch, capsys, *files, *out)
    assert line == (
        f"interrupted; the same command continues from what is saved: {folder / 'model.pth.tar-5'}"
    )
    line = interrupted(monkeypatch, capsys, *files, *out, "--resume", str(tmp_path / "out"))
    assert "the same command without --resume continues" in line

    (tmp_path / "out" / "unfinished.pth").touch()
    line = interrupted(monkeypatch, capsys, *files, *out)
    assert line.endswith(f"continues from what is saved: {tmp_path / 'out' / 'unfinished.pth'}")


def begin(folder: Path, data_root: Path, *pairs: str) -> subprocess.Popen:
    """A run with a worker that has got to its third epoch."""
    process = subprocess.Popen(
        [
            *(sys.executable, ROOT / "train.py", "--trainer", "CoOp", "--seed", "1"),
            *("--root", data_root, "--output-dir", folder),
            *("--dataset-config-file", ROOT / "configs/datasets/digits.yaml"),
            *("--config-file", ROOT / "configs/trainers/CoOp/tiny.yaml"),
            *("DATASET.NUM_SHOTS", "1", "TRAIN.CHECKPOINT_FREQ", "1"),
            *("DATALOADER.NUM_WORKERS", "1", "DATALOADER.CACHE", "none", *pairs),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch [3/"):
            break
    return process


@pytest.mark.parametrize(
    ("number", "status", "start"),
    [
        (signal.SIGINT, 130, "interrupted; "),
        (signal.SIGTERM, 75, "SIGTERM: interrupted; "),
    ],
)
def test_a_signal_ends_a_run_with_workers_in_one_line(data_root, tmp_path, number, status, start):
    process = begin(tmp_path, data_root, "OPTIM.MAX_EPOCH", "1000")
    # as a terminal and a scheduler do: the workers get it as well
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    (line,) = [line for line in err.splitlines() if line.strip()]
    saved = Path(line.removeprefix(f"{start}the same command continues from what is saved: "))
    assert saved.is_file()
    assert saved.parent in (tmp_path, tmp_path / "prompt_learner")
