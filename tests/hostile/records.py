"""Readers of results: records, logs and predictions of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.command_line import ROOT

from .judging import CANARY
from .mutations import (
    Random,
    as_json,
    changed_lines,
    changed_safetensors,
    changed_tree,
    odd_value,
    write_hostile,
)


class _Results:
    """Results of some runs, of which one has a hostile file (parse_test_res.py)."""

    file: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "output"
        self.make(self.folder)
        self.runs = sorted(
            path.parent.relative_to(self.folder) for path in self.folder.rglob(self.file)
        )

    def make(self, output: Path) -> None:
        raise NotImplementedError

    def change(self, rng: Random, valid: bytes) -> bytes:
        raise NotImplementedError

    def write(self, rng: Random | None, target: Path) -> None:
        shutil.copytree(self.folder, target / "output")
        if rng is None:
            return
        path = target / "output" / rng.choice(self.runs) / self.file
        valid = path.read_bytes()
        path.unlink()
        canary = target.parent / CANARY
        write_hostile(rng, path, valid, lambda: self.change(rng, valid), canary)

    def read(self, target: Path) -> None:
        import parse_test_res
        from results.finished import Settings, read_last_start

        output, parser = target / "output", parse_test_res.build_parser()
        formats = ("github", "latex", "csv", "json")
        number = sum(len(path.name) for path in output.rglob("*")) % 4
        words = ["--output", str(output), "--format", formats[number]]
        parse_test_res.parse_output(parser.parse_args(words))
        parse_test_res.parse_output(parser.parse_args([*words, "--compare"]))
        parse_test_res.parse_output(parser.parse_args([*words, "--keyword", "error"]))
        for folder in (output / run for run in self.runs):
            parse_test_res.level_hint(folder.parent, False)
            found = read_last_start(folder, trains=True)
            if found is not None and found.finished:
                files = [str(ROOT / "configs/datasets/dtd.yaml")]
                found.compared_to(Settings(files, ["OPTIM.LR", "0.1"]))


class ResultJson(_Results):
    """Records of runs."""

    file = "result.json"

    def make(self, output: Path) -> None:
        from tests.results.writing import write_record

        for seed in (1, 2):
            tail = f"dtd/shots_16/CoOp/vit_b16/seed{seed}"
            trained = output / "base2new/train_base" / tail
            write_record(trained, 70_000 + seed, seed=seed, part="base")
            write_record(
                output / "base2new/test_new" / tail,
                60_000 + seed,
                seed=seed,
                part="new",
                of=trained,
            )

    def change(self, rng: Random, valid: bytes) -> bytes:
        return as_json(rng, changed_tree(rng, json.loads(valid)))


class LogFile(_Results):
    """Logs of runs."""

    file = "log.txt"

    def make(self, output: Path) -> None:
        from tests.results.writing import base2new

        base2new(output, "dtd", "CoOp", {1: (70.0, 60.0), 2: (71.0, 61.0)})

    def change(self, rng: Random, valid: bytes) -> bytes:
        text = valid
        for pattern, other in (
            (b"accuracy: ", b"accuracy: 9" * 2000),
            (b"accuracy: 7", rng.choice((b"accuracy: e", b"accuracy: 1e999", b"accuracy: nan%"))),
            (
                b"Trainable parameters: ",
                rng.choice((b"Trainable parameters: ,", b"Trainable parameters: " + b"9" * 5000)),
            ),
            (
                b"opts: [",
                rng.choice(
                    (b"opts: " + b"[" * 500, b"opts: __import__('os')", b"opts: {", b"opts: ['a'")
                ),
            ),
            (b"    CTX_INIT", rng.choice((b"  " * 3000 + b"A", b"\tA", b"A: B: C"))),
            (b"seed: 1", b"seed: \xff\xfe"),
            (b"** Arguments **", b"** Arguments **\n" * 20),
            (b"=> result", rng.choice((b"=> result\n" * 50, b"=> resul"))),
            (
                b"MAX_EPOCH: 30",
                rng.choice((b"MAX_EPOCH: " + b"(" * 300, b"MAX_EPOCH: x", b"MAX_EPOCH: '")),
            ),
        ):
            if rng.random() < 0.2:
                text = text.replace(pattern, other)
        return text if rng.random() < 0.5 else changed_lines(rng, text)


class KeptPredictions:
    """Logits of a test, beside its record (reports and metrics)."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        from results import predictions, record
        from tests.results.writing import write_record

        rng = np.random.default_rng(0)
        logits = rng.normal(size=(40, 6)).astype(np.float32)
        labels = rng.integers(0, 6, 40).astype(np.int32)
        classes = ["cat", "golden retriever", "caf\u00e9", "a", "b", "c"]
        images = [f"own/cat/{number}.png" for number in range(40)]
        found = predictions.Predictions(logits, labels, classes, images)
        right = int((found.predicted == labels).sum())
        self.valid = predictions.write(folder, found).read_bytes()
        write_record(folder, right, total=40)
        self.record = dict(record.read(folder) or {})
        self.record["data"] |= {"classes": {"number": 6, "sha256": "", "names": classes}}

    def write(self, rng: Random | None, target: Path) -> None:
        path = target / "predictions.safetensors"
        if rng is None:
            path.write_bytes(self.valid)
            return
        write_hostile(rng, path, self.valid, lambda: self.change(rng), target.parent / CANARY)

    def change(self, rng: Random) -> bytes:
        import numpy as np
        from safetensors.numpy import load, save

        chance = rng.random()
        if chance < 0.3:
            return changed_safetensors(rng, self.valid)
        tensors = load(self.valid)
        size = int.from_bytes(self.valid[:8], "little")
        about = json.loads(json.loads(self.valid[8 : 8 + size])["__metadata__"]["predictions"])
        if chance < 0.65:
            text = as_json(rng, changed_tree(rng, about)).decode("utf-8", "replace")
        else:
            text = json.dumps(about)
            name = rng.choice(("logits", "labels"))
            values = tensors[name]
            value = rng.choice((float("nan"), float("inf"), -1, 3e38, 2**31 - 1, 7, 0))
            with np.errstate(all="ignore"):
                tensors[name] = rng.choice(
                    (
                        np.full_like(values, value),
                        values.astype(rng.choice(("float16", "float64", "int64", "bool", "int32"))),
                        values[: rng.choice((0, 1, 39))],
                        values.reshape(-1),
                        values[None],
                        np.where(values == values.flat[0], value, values).astype(values.dtype),
                        np.zeros((1, 10_000), values.dtype),
                    )
                )
            if rng.random() < 0.3:  # a name for each column
                about["classes"] = [str(c) for c in range(tensors["logits"].shape[-1])]
                text = json.dumps(dict(about, images=[]))
            if rng.random() < 0.2:
                name = str(odd_value(rng))[:50].encode("utf-8", "replace").decode()
                tensors[name] = np.zeros(3, np.float32)
        return save(tensors, metadata={"predictions": text} if rng.random() < 0.95 else None)

    def read(self, target: Path) -> None:
        from results import predictions

        alone = predictions.read(target)
        if alone is None:
            return
        alone.scalars()
        alone.reliability(adaptive=True)
        alone.per_class_accuracy()
        alone.macro_f1()
        alone.of_halves()
        found = predictions.read(target, self.record)
        assert found is not None and found.confusion().sum() == len(found.labels)
