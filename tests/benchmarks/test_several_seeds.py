"""The measurement of seeds trained together: real epochs, and the table."""

from __future__ import annotations

import torch

from benchmarks import several_seeds
from support.filled import fill


def test_together_starts_fewer_operations(tmp_path):
    result = several_seeds.measure("CoOp", "tiny", 1, tmp_path)
    operations = result["operations per step"]
    # one pass instead of three, but for what every seed does by itself
    assert operations["alone"] / 3 < operations["together"] < operations["alone"] / 2
    assert all(len(times) == 1 and times[0] > 0 for times in result["seconds per step"].values())
    row = several_seeds.table([result]).splitlines()[-1]
    assert f"{operations['alone'] / operations['together']:.2f}" in row


def test_operations_count_what_computes_also_backwards():
    x = torch.ones(2, 3, requires_grad=True)
    with several_seeds.Operations() as counter:
        y = (x.t() * 2).sum()
    assert counter.n == 2  # not the transposed view
    with several_seeds.Operations() as counter:
        y.backward()
    assert counter.n >= 2


def test_document_has_a_place_for_the_table():
    text = several_seeds.DOCUMENT.read_text("utf-8")
    assert fill(text, {"several seeds": "here\n"}).count("here\n<!-- end -->") == 1
