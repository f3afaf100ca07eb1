"""What scripts run and skip, which weights they test, and what they say of what cannot be."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train
from results.logs import WRITES_RECORD, BadLog, read_log
from scripts.run import FAILS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "words", "env", "message"),
    [
        ("mmlop/base2new_train", ["digits"], {}, "usage: scripts/mmlop/base2new_train.sh DATASET"),
        ("mmlop/fewshot", ["digits"], {}, "usage: scripts/mmlop/fewshot.sh DATASET SHOTS"),
        ("mmlop/base2new_train", ["digits", "-1"], {}, "SEED must be a whole number"),
        ("mmlop/base2new_train", ["digits", "1,01"], {}, "SEED names a seed twice: 1,01"),
        ("mmlop/fewshot", ["digits", "1", "2", "02"], {}, "SEED names a seed twice"),
        ("mmlop/fewshot", ["digits", "1", "SEED", "5"], {}, "SEED is set by the argument SEED"),
        ("mmlop/fewshot", ["digits", "1"], {"TAG": "a/b"}, "TAG is 'a/b'"),
        ("mmlop/fewshot", ["digits", "1"], {"TAG": ".."}, "TAG is '..'"),
        ("mmlop/fewshot", ["digits", "1"], {"SUBFOLDER": "../q"}, "SUBFOLDER is '../q'"),
        ("mmlop/base2new_train", ["digits", "1"], {"SHOTS": "0"}, "SHOTS must be"),
        ("mmlop/fewshot", ["digits", "each"], {}, "SHOTS must be a whole number from 1 on, or all"),
        ("mmlop/base2new_train", ["digits", "1", "OPTIM.LR"], {}, "a key has no value"),
        ("mmlop/base2new_train", ["digits", "1", "OPTIM.LR=1"], {}, "as two words, OPTIM.LR 1"),
        ("mmlop/base2new_train", ["digit", "1"], {}, "no data set digit; there are: "),
        ("mmlop/base2new_train", ["digit", "1"], {}, "; did you mean digits?"),
        ("mmlop/base2new_train", ["dtd", "1", "DATASET.NUM_SHOTS", "1"], {}, "is set by SHOTS"),
        ("mmlop/fewshot", ["dtd", "1", "1", "DATASET.SUBSAMPLE_CLASSES", "new"], {}, "protocol"),
        ("mmlop/base2new_train", ["digits", "1"], {"CFG": "huge"}, "MMLoP/huge.yaml; there are: "),
        ("mmlop/base2new_train", ["digits", "1"], {"CFG": "tini"}, "; did you mean tiny?"),
        ("mmlop/base2new_train", ["digits", "1"], {"DATA": "/nowhere"}, "DATA is /nowhere, which"),
        ("mmlop/base2new_train", ["digits", "1", "0"], {}, "MAX_EPOCH must be a whole number"),
        ("mmlop/base2new_train", ["digits", "1"], {"SUBFOLDER": "a"}, "SUBFOLDER is not for"),
        ("mmlop/base2new_train", ["digits", "1"], {"WEIGHTS": "/w"}, "WEIGHTS is for testing"),
        ("zsclip/xd_test", ["digits", "1"], {"WEIGHTS": "/w"}, "WEIGHTS is for testing"),
        (
            "mmlop/base2new_train",
            ["OPTIM.MAX_EPOCH", "2"],
            {},
            "OPTIM.MAX_EPOCH is a config key, in the place of DATASET: usage: scripts/mmlop/base2n",
        ),
        ("mmlop/fewshot", ["digits", "OPTIM.LR", "2"], {}, "in the place of SHOTS: usage: scripts"),
        ("mmlop/xd_train", ["OPTIM.LR", "2"], {}, "in the place of [DATASET]: usage: scripts/mml"),
        ("maple/xd_train_maple", ["digits", "OPTIM.LR", "2"], {}, "in the place of SEED: usage: "),
        ("coop/eval", ["digits", "OPTIM.LR"], {}, "in the place of CFG: usage: scripts/coop/eval"),
        ("mmlop/xd_train", [], {}, "usage: scripts/mmlop/xd_train.sh [DATASET] SEED"),
        ("mmlop/xd_train", ["digits"], {}, "usage: scripts/mmlop/xd_train.sh [DATASET] SEED"),
        ("mmlop/xd_train", ["digits", "1"], {"SOURCE": "shapes"}, "SOURCE is shapes, but digits"),
        ("mmlop/xd_test", ["digits", "1"], {"SOURCE": "shape"}, "no data set shape; there are: "),
        ("mmlop/xd_test", ["1"], {}, "usage: scripts/mmlop/xd_test.sh DATASET SEED [MAX_EPOCH]"),
        ("mmlop/dg_test", ["shapes", "1"], {}, "shapes is no variant of imagenet ("),
        ("mmlop/fewshot", ["symbols_r", "1"], {}, "symbols_r is for tests only (its images are"),
        ("mmlop/base2new_train", ["symbols_v2", "1"], {}, "test images): train on symbols"),
        ("tipadapter/fewshot", ["imagenet_a", "1"], {}, "imagenet_a is for tests only"),
        ("mmlop/xd_train", ["imagenetv2", "1"], {}, "test images): train on imagenet"),
        ("mmlop/xd_train", ["1"], {"SOURCE": "symbols_a"}, "symbols_a is for tests only"),
        ("zsclip/base2new", ["dtd", "1"], {}, "no protocol 'base2new'; there are: "),
        ("mmlop/fewshots", ["dtd", "1"], {}, "; did you mean fewshot?"),
        ("mlop/fewshot", ["dtd", "1"], {}, "no method 'mlop'; there are: "),
        ("mlop/fewshot", ["dtd", "1"], {}, "; did you mean mmlop?"),
        ("mmlop/zeroshot", ["dtd", "1"], {}, "zeroshot is not for mmlop, which is trained"),
        ("mmlop/base2new_train", ["digits", "1,"], {}, "not '1,'"),
        ("mmlop/base2new_train", ["digits", ",1"], {}, "not ',1'"),
        ("mmlop/base2new_train", ["digits", "1,,2"], {}, "not '1,,2'"),
        ("mmlop/base2new_train", ["digits", "a,2"], {}, "not 'a,2'"),
        (
            "mmlop/base2new_test",
            ["digits", "1", "OPTIM.MAX_EPOCH", "few"],
            {},
            "config key OPTIM.MAX_EPOCH takes int values",
        ),
        ("mmlop/base2new_train", ["digits", "1", "K" * 201, "1"], {}, "set TAG=<short name>"),
    ],
)
def test_bad_arguments_stop_at_once(script, words, env, message, call):
    done = call(script, *words, **env)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_zero_shot_clip_says_that_it_has_nothing_to_train(call):
    done = call("zsclip/xd_train", "digits", "1", DRY_RUN="1")
    assert done.returncode == 0
    assert done.stderr == "note: ZeroshotCLIP has nothing to train; it is tested\n"


@pytest.mark.parametrize(
    ("script", "words", "env"),
    [
        ("zsclip/fewshot", ("symbols_r", "1", "1"), {}),
        ("mmlop/dg_test", ("symbols_r", "1"), {}),
        ("mmlop/xd_test", ("imagenet_a", "1"), {}),
        ("mmlop/fewshot", ("imagenet_a", "1", "1"), {"WEIGHTS": "weights"}),
    ],
)
def test_variants_may_be_tested_on(dry_run, script, words, env):
    (command,) = dry_run(script, *words, **env)
    train.setup_cfg(train.build_parser().parse_args(command[2:]))


def test_keys_of_training_give_zero_shot_clip_no_other_folder(call, dry_run):
    """Nor is another one run, where a sweep of several methods sets them."""
    words = ("digits", "1", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "8")
    done = call("zsclip/base2new_train", *words, "TEST.BATCH_SIZE", "8", DRY_RUN="1")
    assert "OPTIM.MAX_EPOCH, DATALOADER.TRAIN_X.BATCH_SIZE" in done.stderr
    plain = dry_run("zsclip/base2new_train", "digits", "1", "TEST.BATCH_SIZE", "8")
    assert [shlex.split(line) for line in done.stdout.splitlines()] == plain
    assert "OPTIM.MAX_EPOCH" in dry_run("coop/base2new_train", *words)[0]
    # a key that there is not is no key of training
    assert "OPTIM.EPOCHS" in dry_run("zsclip/base2new_train", "digits", "1", "OPTIM.EPOCHS", "2")[0]


def test_a_dry_run_warns_of_data_that_are_not_there(call, tmp_path):
    done = call("coop/base2new_train", "dtd", "1", DRY_RUN="1", DATA=str(tmp_path))
    assert done.returncode == 0 and "train.py" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(FAILS) and f"{tmp_path / 'dtd'} not found" in line
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    assert call("coop/base2new_train", "dtd", "1", DRY_RUN="1", DATA=str(tmp_path)).stderr == ""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mmlop/base2new_train", "usage: scripts/mmlop/base2new_train.sh DATASET SEED [MAX_EPOCH]"),
        ("mmlop/fewshot", "usage: scripts/mmlop/fewshot.sh DATASET SHOTS [SEED ...]"),
        ("mmlop/fewshot", "scripts/<method>/base2new_train.sh DATASET SEED"),
        ("maple/reproduce_maple", "reproduce*.sh DATASET SEED WEIGHTSPATH"),
    ],
)
def test_help_explains_with_the_variables(script, words, call):
    for option in ("--help", "-h"):
        done = call(script, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout
        assert "From the environment" in done.stdout and "OUTPUT" in done.stdout


def test_threads_of_the_tiny_backbone(tmp_path, call, stand_in):
    program = stand_in('echo "threads ${OMP_NUM_THREADS:-all}"')
    env = {"OUTPUT": str(tmp_path / "out"), "PYTHON": program, "DATA": str(tmp_path)}
    script = "coop/base2new_train"
    assert call(script, "digits", "1", **env).stdout == "threads 1\n"
    assert call(script, "digits", "1", OMP_NUM_THREADS="3", **env).stdout == "threads 3\n"
    assert call(script, "eurosat", "1", **env).stdout == "threads all\n"


def test_a_source_that_was_forgotten(tmp_path, call, python_that_reports):
    (tmp_path / "digits/CoOp/tiny_16shots/seed1").mkdir(parents=True)
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("coop/xd_test", "shapes", "1", **env)
    assert done.returncode == 2
    assert (
        "SOURCE is not set, so that it is imagenet (there are trainings on: digits)" in done.stderr
    )
    done = call("coop/xd_test", "shapes", "1", **env, SOURCE="imagenet")
    assert "SOURCE" not in done.stderr


RESULT = "=> result\n* total: 20\n* accuracy: 91.81%\n"
CURRENT = f"Finish training\nDeploy the last-epoch model\n{RESULT}"
LOGS = {
    "current": (CURRENT, True),
    "older": (f"Finished training\n{RESULT}", True),
    "crashed": ("epoch [1/5] batch [20/124] loss 1.2 (1.3)\n", False),
    "validated only": (RESULT, False),
    "no result": ("Finish training\nDeploy the last-epoch model\n", False),
    "result before the end": (f"{RESULT}Finish training\n", False),
    "empty": ("", False),
    "started again": (f"** Arguments **\n{CURRENT}** Arguments **\nepoch [1/5]\n", False),
    "finished later": (f"** Arguments **\nepoch [1/5]\n** Arguments **\n{CURRENT}", True),
}


@pytest.fixture
def python_that_reports(stand_in):
    """An interpreter that only prints its arguments."""
    return stand_in('echo "ran $*"')


@pytest.mark.parametrize("name", LOGS)
def test_finished_run_is_skipped(name, tmp_path, python_that_reports, call):
    text, finished = LOGS[name]
    folder = tmp_path / "base2new/train_base/digits/shots_16/CoOp/tiny/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(text)
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("coop/base2new_train", "digits", "1", **env)
    assert done.returncode == 0, done.stderr
    assert ("finished already" in done.stdout) == finished
    assert ("ran train.py" in done.stdout) == (not finished)
    # The parser calls the same logs finished.
    try:
        read_log(folder / "log.txt", "accuracy", test_log=None)
        counts = True
    except BadLog:
        counts = False
    assert counts == finished


def test_a_training_without_a_test_is_finished(tmp_path, python_that_reports, call):
    folder = tmp_path / "digits/CoOp/tiny_allshots"
    finished = "Finish training\nNot tested: no test images\nElapsed: 0:00:01\n"
    for seed, text in enumerate((finished, LOGS["crashed"][0])):
        (folder / f"seed{seed}").mkdir(parents=True)
        (folder / f"seed{seed}/log.txt").write_text(f"** Arguments **\n{text}")
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    lines = call("coop/fewshot", "digits", "all", "0", "1", **env).stdout.splitlines()
    assert lines[0] == f"finished already: {folder}/seed0"
    assert lines[1].startswith("ran train.py")


def test_a_finished_repetition_counts(tmp_path, python_that_reports, call):
    folder = tmp_path / "digits/CoOp/tiny_1shots/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(LOGS["crashed"][0])
    (folder / "log.txt-2026-01-02-03-04-05").write_text(LOGS["current"][0])
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("coop/fewshot", "digits", "1", "1", "2", **env)
    lines = done.stdout.splitlines()
    assert lines[0] == f"finished already: {folder}"
    assert lines[1].startswith("ran train.py")
    assert "seed2" in lines[1]


@pytest.fixture
def finished(tmp_path, monkeypatch, capfd):
    """Function that writes the log of a finished training of CoOp on digits, with these pairs."""
    folder = tmp_path / "base2new/train_base/digits/shots_16/CoOp/tiny-mine/seed1"
    few = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base"]
    monkeypatch.setattr("dassl.utils.collect_env_info", str)
    monkeypatch.setattr("dassl.utils.print_detail", print)  # as it stands in a log
    monkeypatch.chdir(ROOT)

    def write(*pairs: str) -> Path:
        words = "--root data --seed 1 --trainer CoOp"
        words += " --dataset-config-file configs/datasets/digits.yaml"
        words += f" --config-file configs/trainers/CoOp/tiny.yaml --output-dir {folder}"
        args = train.build_parser().parse_args([*words.split(), *few, *pairs])
        train.print_settings(args, train.setup_cfg(args))
        folder.mkdir(parents=True)
        # as of an older version, which wrote no record
        settings = capfd.readouterr().out.replace(WRITES_RECORD, "")
        (folder / "log.txt").write_text(settings + LOGS["current"][0])
        return folder

    return write


@pytest.mark.parametrize(
    ("then", "now", "words", "message"),
    [
        ("", "", "finished already", ""),
        ("", "DATALOADER.NUM_WORKERS 3", "with DATALOADER.NUM_WORKERS 0 (now 3)", ""),
        ("", "TEST.PER_CLASS_RESULT True", "ran train.py", ""),
        ("TEST.NO_TEST True", "", "ran train.py", ""),
        ("TEST.PER_CLASS_RESULT True", "", "finished already", ""),
        ("", "OPTIM.LR 0.1", "", "a finished run with OPTIM.LR 0.005 (now 0.1): give the settings"),
        ("OPTIM.LR 0.1", "OPTIM.LR 1e-1", "finished already", ""),
        ("OPTIM.LR 0.1", "", "", "OPTIM.LR 0.1 (now 0.005)"),
        ("OPTIM.MOMENTUM 0", "", "", "OPTIM.MOMENTUM 0.0 (now 0.9)"),
        ("TRAINER.COOP.N_CTX 3", "", "", "TRAINER.COOP.N_CTX 3 (now 4)"),
        ("OPTIM.MAX_EPOCH 5", "OPTIM.MAX_EPOCH 5", "finished already", ""),
        ("OPTIM.MAX_EPOCH 5", "", "", "or train that one for longer with TRAIN.EXTEND True"),
        ("OPTIM.MAX_EPOCH 5", "TRAIN.EXTEND True", "ran train.py", ""),
        ("OPTIM.MAX_EPOCH 5", "TRAIN.EXTEND True OPTIM.MAX_EPOCH 4", "", "MAX_EPOCH 5 (now 4)"),
        (
            "OPTIM.MAX_EPOCH 5",
            "TRAIN.EXTEND True OPTIM.LR 1",
            "",
            "0.005 (now 1), OPTIM.MAX_EPOCH 5",
        ),
    ],
)
def test_a_finished_run_of_other_settings(
    then, now, words, message, finished, tmp_path, call, python_that_reports
):
    """It is not taken for one of these settings; how it was computed is said."""
    finished(*then.split())
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, "TAG": "mine"}
    done = call("coop/base2new_train", "digits", "1", *now.split(), **env)
    assert words in done.stdout
    assert message in done.stderr if message else done.stderr == ""
    assert done.returncode == (2 if message else 0)


def test_weights_of_other_settings_are_not_tested(finished, tmp_path, python_that_reports, call):
    folder = finished("OPTIM.LR", "0.1")
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, "TAG": "mine"}
    words = ("coop/base2new_test", "digits", "1", "OPTIM.LR")
    done = call(*words, "0.2", **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{folder} holds a finished run with OPTIM.LR 0.1 (now 0.2)" in done.stderr
    assert call(*words, "0.1", **env).stdout.startswith("ran train.py")


def test_finished_seeds_are_not_trained_with_the_others(tmp_path, python_that_reports, call):
    folder = tmp_path / "digits/CoOp/tiny_1shots"
    (folder / "seed2").mkdir(parents=True)
    (folder / "seed2/log.txt").write_text(LOGS["current"][0])
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    lines = call("coop/fewshot", "digits", "1", "1,2,3", **env).stdout.splitlines()
    assert lines[0] == f"finished already: {folder}/seed2"
    assert "--seeds 1,3" in lines[1]
    assert f"--output-dir {folder}/seed{{seed}}" in lines[1]
    done = call("coop/fewshot", "digits", "1", "2", **env)
    assert done.stdout.splitlines() == lines[:1]


def test_testing_needs_the_training(tmp_path, python_that_reports, call):
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("coop/base2new_test", "digits", "1", **env)
    assert done.returncode == 2
    assert "first run scripts/coop/base2new_train.sh" in done.stderr
    assert "ran" not in done.stdout


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (
            ["mmlop/xd_test", "shapes", "1"],
            {"SOURCE": "digits"},
            "first run scripts/mmlop/xd_train",
        ),
        (["mmlop/dg_test", "1"], {}, "first run scripts/mmlop/xd_train.sh with the same settings"),
        (["mmlop/base2new_test", "dtd", "1"], {"WEIGHTS": "w"}, "no model.pth.tar-30 below "),
    ],
)
def test_transfer_needs_weights(words, env, message, tmp_path, python_that_reports, call):
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, **env}
    done = call(words[0], *words[1:], cwd=tmp_path, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_results_of_other_weights_do_not_count(tmp_path, python_that_reports, call):
    """Published weights and one's own are tested into the same folder, as upstream."""
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, "SOURCE": "digits"}
    trained = tmp_path / "digits/CoOp/tiny_16shots/seed1"
    published = tmp_path / "published/seed1"
    for folder in (trained, published):
        (folder / "prompt_learner").mkdir(parents=True)
        weights = folder / "prompt_learner/model.pth.tar-20"
        weights.write_text("")
        os.utime(weights, (1_000_000, 1_000_000))
    (trained / "log.txt").write_text(LOGS["current"][0])
    tested = tmp_path / "evaluation/CoOp/tiny_16shots/from_digits/shapes/seed1"
    tested.mkdir(parents=True)
    words = ("coop/xd_test", "shapes", "1")
    # in the place that the results had before they were moved
    own = "elsewhere/output/digits/CoOp/tiny_16shots/seed1"
    for loaded, of_own, of_published in ((own, True, False), (str(published), False, True)):
        (tested / "log.txt").write_text(f"** Arguments **\nmodel_dir: {loaded}\n{RESULT}")
        done = call(*words, **env)
        assert done.stdout.startswith("finished already" if of_own else "ran train.py")
        done = call(*words, **env, WEIGHTS=str(published.parent))
        assert done.stdout.startswith("finished already" if of_published else "ran train.py")


def test_a_new_training_is_tested_again(tmp_path, python_that_reports, call):
    tail = "digits/shots_16/CoOp/tiny/seed1"
    base = tmp_path / "base2new/train_base" / tail
    new = tmp_path / "base2new/test_new" / tail
    weights = base / "prompt_learner" / "model.pth.tar-20"
    for folder in (weights.parent, new):
        folder.mkdir(parents=True)
    (base / "log.txt").write_text(LOGS["current"][0])
    weights.write_text("")
    (new / "log.txt").write_text(RESULT)
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    os.utime(weights, (1_000_000, 1_000_000))
    done = call("coop/base2new_test", "digits", "1", **env)
    assert done.stdout == f"finished already: {new}\n"
    os.utime(new / "log.txt", (999_999, 999_999))
    done = call("coop/base2new_test", "digits", "1", **env)
    assert done.stdout.startswith("ran train.py")


def test_failure_stops_the_seeds(tmp_path, call, stand_in):
    env = {"OUTPUT": str(tmp_path), "PYTHON": stand_in("echo ran; exit 3")}
    done = call("coop/fewshot", "digits", "1", **env)
    assert done.returncode == 3
    assert done.stdout == "ran\n"


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_signals_end_the_run(number, to_all, tmp_path, stand_in):
    """Ctrl-C, which a terminal sends to all, and SIGTERM: the run ends itself, waited for."""
    body = "trap 'echo ended; exit 7' INT TERM; echo started; while :; do sleep 0.05; done"
    command = [sys.executable, ROOT / "scripts" / "run.py", "coop", "fewshot", "digits", "1"]
    process = subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], "OUTPUT": str(tmp_path), "PYTHON": stand_in(body)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (7, "ended\n", "")
