"""Readers of texts: configurations, tables of sources, templates, class names."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from support.command_line import ROOT

from .judging import CANARY
from .mutations import Random, as_json, as_yaml, changed_tree, odd_text, write_hostile


@functools.cache
def small_clip() -> Any:
    from .weights import small_model

    return small_model()


@functools.cache
def _record() -> dict[str, Any]:
    """Return the content of a run's record, without its schema."""
    from results.record import read
    from tests.results.writing import write_record

    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder), 50)
        record = read(folder)
    assert record is not None
    return {key: value for key, value in record.items() if key != "schema"}


def use_names(names: Sequence[str]) -> None:
    """Do with class names what a run does: encode them, print them and write its record."""
    from adaptation.texts import class_prompts
    from results import record

    class_prompts(small_clip(), names, "a photo of a {}.")
    content = json.loads(json.dumps(_record()))
    content["data"]["classes"] = {"number": len(names), "sha256": "0", "names": list(names)}
    with tempfile.TemporaryDirectory() as folder:
        record.write(folder, content)
        found = record.read(folder)
        assert found is not None and found["data"]["classes"]["names"] == list(names)
    # none of them looks like a line of its own in the log
    lines = [f"* class: {name}" for name in names]
    assert "\n".join(lines).splitlines() == lines


class _YamlFile:
    """A hostile YAML file made from valid ones."""

    def __init__(self, folder: Path) -> None:
        self.valid = self.files()

    def files(self) -> list[str]:
        raise NotImplementedError

    name = "file.yaml"

    def write(self, rng: Random | None, target: Path) -> None:
        path = target / self.name
        text = self.valid[0] if rng is None else rng.choice(self.valid)
        if rng is None:
            path.write_text(text)
            return
        canary = target.parent / CANARY

        def change() -> bytes:
            return as_yaml(rng, changed_tree(rng, yaml.safe_load(text)), canary)

        write_hostile(rng, path, text.encode(), change, canary)


class ConfigFile(_YamlFile):
    """Config files of trainers and data sets (train.py)."""

    def files(self) -> list[str]:
        from dassl.config import get_cfg_default

        trainer = ROOT / "configs/trainers/MMLoP/tiny.yaml"
        base = f"_BASE_: {trainer}\nTRAINER: {{MMLOP: {{N_CTX: 2, RANK: 1}}}}\nOPTIM: {{LR: 0.1}}\n"
        dataset = (ROOT / "configs/datasets/imagefolder.yaml").read_text()
        return [base, dataset, get_cfg_default().dump(), (ROOT / "configs/base.yaml").read_text()]

    def read(self, target: Path) -> None:
        import train
        from dassl.config import clean_cfg
        from results.finished import Settings

        path = str(target / self.name)
        words = ["--trainer", "MMLoP", "--root", "data", "--config-file", path]
        words += ["DATASET.NAME", "Digits"]
        args = train.build_parser().parse_args(words)
        cfg = train.setup_cfg(args)
        shown = cfg.clone()
        shown.defrost()
        clean_cfg(shown, cfg.TRAINER.NAME, "MMLOP")
        str(shown)
        yaml.safe_load(cfg.dump())
        Settings([path]).values()


class DeclaredKeys(_YamlFile):
    """YAML file that declares config keys (--extend-cfg)."""

    def files(self) -> list[str]:
        return [
            "TRAINER: {MINE: {WEIGHT: 1.0, NAMES: [a, b], DEPTH: 3, SWITCH: true}}\n"
            "OWN: {KEY: text}\n"
        ]

    def read(self, target: Path) -> None:
        from dassl.config import get_cfg_default
        from dassl.engine.own_files import declare_keys

        cfg = get_cfg_default()
        declare_keys(cfg, str(target / self.name))
        cfg.freeze()
        cfg.dump()


class SourcesTable(_YamlFile):
    """Table of data sets' addresses (python -m datasets.prepare --sources)."""

    def files(self) -> list[str]:
        table = yaml.safe_load((ROOT / "datasets/sources.yaml").read_text())
        return [yaml.safe_dump({key: table[key] for key in (stem,)}) for stem in table]

    def read(self, target: Path) -> None:
        from datasets import prepare

        words = ["--sources", str(target / self.name), "--root", str(target / "data")]
        prepare.run(prepare.build_parser().parse_args([*words, "--list"]))
        status = prepare.run(
            prepare.build_parser().parse_args([*words, "--check", "dtd", "sun397"])
        )
        assert status == 1  # nothing is there


class TemplateFile:
    """Files of text templates (DATASET.TEMPLATES)."""

    texts = ("a photo of a {}.", "itap of the {}.", "# a comment", "art of a {}.")

    def __init__(self, folder: Path) -> None:
        pass

    def write(self, rng: Random | None, target: Path) -> None:
        is_yaml = rng is None or rng.random() < 0.5
        path = target / ("texts.yaml" if is_yaml else "texts.txt")
        tree = [text for text in self.texts if text[0] != "#"]
        valid = yaml.safe_dump(tree) if is_yaml else "\n".join(self.texts)
        if rng is None:
            path.write_text(valid)
            return
        canary = target.parent / CANARY

        def change() -> bytes:
            if is_yaml:
                return as_yaml(rng, changed_tree(rng, tree), canary)
            lines = list(self.texts)
            lines[rng.randrange(4)] = rng.choice(("", "a ", "{}")) + odd_text(rng)
            return "\n".join(lines).encode("utf-8", "surrogatepass")

        write_hostile(rng, path, valid.encode(), change, canary)

    def read(self, target: Path) -> None:
        from adaptation.templates import given_templates
        from adaptation.texts import class_prompts

        found = sorted(entry.name for entry in target.iterdir()) or ["texts.txt"]
        for template in given_templates(found, str(target))[:20]:
            class_prompts(small_clip(), ["cat", "golden_retriever"], template)


class SentenceFile:
    """Sentences about classes, which CoPrompt's teacher reads (TRAINER.COPROMPT.SENTENCES)."""

    classnames = ("cat", "golden_retriever", "forget-me-not")

    def __init__(self, folder: Path) -> None:
        pass

    def write(self, rng: Random | None, target: Path) -> None:
        about = {
            name.replace("_", " "): [f"The {name} is small.", f"A {name} is there."]
            for name in self.classnames
        }
        path = target / "some.json"
        if rng is None:
            path.write_text(json.dumps(about))
            return
        canary = target.parent / CANARY
        valid = json.dumps(about).encode()
        write_hostile(rng, path, valid, lambda: as_json(rng, changed_tree(rng, about)), canary)

    def read(self, target: Path) -> None:
        from adaptation.sentences import find_sentences, read_sentences

        path = find_sentences("some.json", str(target), "Digits", "TRAINER.COPROMPT.SENTENCES")
        found = read_sentences(path, self.classnames, 77)
        assert len({len(sentences) for sentences in found}) == 1 and all(found)


class ClassNames:
    """Class names for a zero-shot prediction (predict.py --classes)."""

    def __init__(self, folder: Path) -> None:
        small_clip()

    def write(self, rng: Random | None, target: Path) -> None:
        names = ["cat", "golden retriever", "oak tree"]
        path, valid = target / "names.txt", "\n".join(names).encode()
        if rng is None:
            path.write_bytes(valid)
            return

        def change() -> bytes:
            names[rng.randrange(3)] = odd_text(rng)
            names.extend(odd_text(rng)[:40] for _ in range(rng.choice((0, 0, 1, 3))))
            return "\n".join(names).encode("utf-8", "surrogatepass")

        write_hostile(rng, path, valid, change, target.parent / CANARY)

    def read(self, target: Path) -> None:
        import predict
        from adaptation.predictor import Label
        from tools.command import read_names

        names = read_names(str(target / "names.txt"))
        use_names(names)
        with contextlib.redirect_stdout(io.StringIO()):
            for words in ([], ["--json"], ["--csv"]):
                args = predict.build_parser().parse_args([*words, "image.png"])
                predict.show("image.png", [Label(name, 0.5) for name in names], args)
