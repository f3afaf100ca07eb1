"""MPL's maps: copies of one another by default, as in the published code."""

from __future__ import annotations

import pytest
import torch

from dassl.engine import build_trainer


@pytest.mark.parametrize("twins", [True, False])
def test_tokens_of_the_last_prompted_block(make_cfg, twins):
    pairs = ["TRAINER.MPL.TWIN_MAPS", twins, "TRAINER.MPL.PROMPT_DEPTH", 3]
    trainer = build_trainer(make_cfg("MPL", *pairs, "OPTIM.WARMUP_EPOCH", -1))
    trainer.train()
    tokens = trainer.model.learner.image_changes()[2].tokens.detach()
    first, second = tokens.chunk(2)
    assert torch.allclose(first, second, atol=1e-5) == twins
