"""The speed benchmark: its plain variant computes what the toolbox computes, and it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptation.features import FeatureTrainer
from adaptation.trainer import PromptTrainer
from benchmarks import speed
from dassl.engine import TRAINER_REGISTRY
from support.filled import fill
from tests.parity_files import relative_error

#: those whose steps encode anything
METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), PromptTrainer)
    and not issubclass(TRAINER_REGISTRY.get(name), FeatureTrainer)
]
#: as deep and with as many pixels as ViT-B/16, which the configs are for, but narrow
SMALL = (32, 224, 12, 64, 112, 77, 49408, 64, 1, 12)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "small.pt"
    speed.save_random_clip(path, SMALL)
    return path


#: settings without which a method's step would not be the same twice
PAIRS = {"CLIPLoRA": ("TRAINER.CLIPLORA.DROPOUT", 0.0)}


@pytest.mark.parametrize("method", METHODS)
def test_variants_compute_the_same(backbone, method):
    """Features of both encoders, logits, and the gradient of every learnable tensor."""
    found = {}
    for variant in (speed.PLAIN, speed.PACKED):
        trainer = speed.build(method, 3, backbone, variant, *PAIRS.get(method, ()))
        trainer.set_model_mode("train")
        batch = speed.random_batch(trainer, 2)
        prediction = trainer.model.predict(batch["img"])
        trainer.loss(prediction, batch["label"])[0].backward()
        found[variant] = prediction, dict(trainer.model.learner.named_parameters())
    (plain, plain_grads), (ours, grads) = found[speed.PLAIN], found[speed.PACKED]
    for field in ("image_features", "text_features", "logits"):
        assert relative_error(getattr(ours, field), getattr(plain, field).detach()) < 2e-5, field
    for key, parameter in plain_grads.items():
        assert relative_error(grads[key].grad, parameter.grad) < 1e-3, key


def test_arithmetic_is_counted(tmp_path):
    path = tmp_path / "two_blocks.pt"
    speed.save_random_clip(path, (32, 224, 2, 64, 112, 77, 49408, 64, 1, 2))
    plain, ours = (
        speed.count_flops("CoOp", 2, path, variant) for variant in (speed.PLAIN, speed.PACKED)
    )
    # two classes, 77 tokens, two blocks: 12 d^2 products per token, forward and backward
    products = 2 * 77 * 2 * 12 * 64**2 * 2 * 2 / 1e9
    assert products < plain["text_gflop"] < 1.4 * products
    assert ours["text_gflop"] < plain["text_gflop"] / 3
    constant = speed.count_flops("LoRVP", 2, path, speed.PACKED)
    assert constant["text_gflop"] == 0 < constant["gflop"]
    # images: CoOp has no image prompts, nothing goes back
    assert 0 < ours["gflop"] - ours["text_gflop"] <= plain["gflop"] - plain["text_gflop"]


def test_measurements_are_kept(backbone, tmp_path, monkeypatch):
    out = tmp_path / "speed.json"
    command = ["--backbone", str(backbone), "--out", str(out)]
    command += ["--methods", "IVLP", "--classes", "3", "--repeats", "2"]

    def run(*arguments: str) -> list[dict]:
        assert speed.main([*command, *arguments]) == 0
        return json.loads(out.read_text())

    monkeypatch.setattr(speed, "TEST_BATCH", 3)
    times = run("--what", "step", "text", "eval")
    assert len(times) == 6
    for record in times:
        assert len(record["user"]) == 2 and min(speed.seconds(record)) > 0
    # memory is measured by a process of its own
    both = run("--what", "memory", "--memory-of", "text", "--variants", "ours", "--within", "1")
    memory = [r for r in both if r["what"] == "memory of text"]
    assert [r for r in both if r not in memory] == times
    assert [r["variant"] for r in memory] == ["ours", "ours, MEMORY_GB 1"]
    assert 0 <= memory[0]["tensors"] < 1
    for record in memory:
        assert record["base"] > 0.1 and record["peak"] >= 0
    again = run("--what", "text", "--variants", "ours", "--cold")
    assert len(again) == len(both)
    (cost,) = [r for r in run("--what", "cost", "--variants", "ours") if r["what"] == "cost"]
    assert cost["config"] == speed.base_to_new_config("IVLP")
    assert min(cost["user"]) > 0 and len(cost["user"]) == len(cost["encoding_user"]) == 2


def test_tables_and_the_document():
    common = {"method": "IVLP", "classes": 5, "machine": "any"}
    times = [
        {**common, "what": "step", "variant": speed.PLAIN, "user": [4, 6], "system": [0, 2]},
        {**common, "what": "step", "variant": speed.PACKED, "user": [2, 2], "system": [0, 0]},
    ]
    memory = {**times[1], "what": "memory of text", "variant": "ours, MEMORY_GB 1", "peak": 1.234}
    flops = [
        {**common, "what": "flops", "variant": speed.PLAIN, "gflop": 30.0, "text_gflop": 20.0},
        {**common, "what": "flops", "variant": speed.PACKED, "gflop": 10.0, "text_gflop": 2.0},
    ]
    tables = speed.tables([*times, memory, *flops])
    assert "| 6.00           | 2.00          | 3.00 (2.00 to 4.00)" in tables["time"]
    assert "| text | IVLP     | 5         | ours, MEMORY_GB 1 | 1.23 " in tables["memory"]
    assert "| 3.00           | 10.0        | 3.75" in tables["flops"]
    text = speed.DOCUMENT.read_text("utf-8")
    filled = fill(text, {**tables, "machine": "any\n"})
    assert tables["time"] in filled
    recorded = json.loads(speed.OUT.read_text("utf-8"))
    assert all(table in text for table in speed.tables(recorded).values())
