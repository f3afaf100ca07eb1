"""Readers of results: records and logs of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.command_line import ROOT

from .judging import CANARY
from .mutations import Random, as_json, changed_lines, changed_tree, write_hostile


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
