"""The GPU benchmark, run where there may be none: the same steps, its records and its table."""

from __future__ import annotations

import json

from benchmarks import gpu, speed
from tests.benchmarks.test_speed import SMALL


def test_on_whatever_device_there_is(tmp_path, capsys):
    backbone, out = tmp_path / "small.pt", tmp_path / "gpu.json"
    speed.save_random_clip(backbone, SMALL)
    words = ["--methods", "PromptSRC", "--classes", "3", "--steps", "2", "--repeats", "2"]
    words += ["--backbone", str(backbone), "--out", str(out)]
    assert gpu.main(words) == 0
    records = json.loads(out.read_text())
    assert [record["variant"] for record in records] == list(gpu.VARIANTS)
    assert all(len(record["ms"]) == 2 and min(record["ms"]) > 0 for record in records)
    assert records[0]["precision"] == "bf16"
    rows = [line for line in capsys.readouterr().out.splitlines() if "| PromptSRC" in line]
    assert [variant in row for variant, row in zip(gpu.VARIANTS, rows, strict=True)] == [True] * 4


def test_table_has_ratios_and_aims():
    common = {"method": "PromptSRC", "classes": 50, "precision": "bf16"}
    common |= {"memory": 1.5, "reserved": 3.5}
    records = [
        {**common, "variant": variant, "ms": [ms, ms + 2]}
        for variant, ms in zip(gpu.VARIANTS, (11, 5, 1, 7), strict=True)
    ]
    plain, _, graph, seeds = gpu.table(records).splitlines()[2:]
    assert "| 12.00         | 1.00 " in plain and "| 2.5" not in plain
    assert "| 2.00          | 6.00 " in graph and "| 2.5" in graph
    assert seeds.rstrip(" |").endswith("| 9.00")
