"""Numbers of trained parameters on ViT-B/16, as the papers and reference classes have them."""

from __future__ import annotations

import pytest

from benchmarks.parameters import counts

MAP = 512 * 768 + 768  # one linear map from text to image width
EXPECTED = {
    ("CoOp", "vit_b16"): 8_192,
    ("CoOp", "vit_b16_ctxv1"): 2_048,
    ("KgCoOp", "vit_b16_ep100_ctxv1"): 2_048,
    ("TCP", "vit_b16_ep50"): 331_904,
    ("ProGrad", "vit_b16"): 8_192,
    ("CLIPLoRA", "vit_b16"): 184_320,
    ("MMA", "vit_b16_ep5"): 674_560,
    # of the first stage; the second trains 512 for each class
    ("TwoStageFS", "vit_b16"): 61_440,
    ("CLIPAdapter", "vit_b16_ep50"): 131_072,
    # of 10 classes
    **{(method, "vit_b16"): 10 * 512 for method in ("TaskRes", "ZSLP", "CLAP")},
    ("LPPlusPlus", "vit_b16"): 10 * 512 + 2 * 10,
    ("TipAdapter", "vit_b16"): 0,
    ("TipAdapterF", "vit_b16"): 10 * 16 * 512,  # with 16 images of each
    ("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1"): 35_360,
    ("CoCoOp", "vit_b16_c16_ep10_batch1"): 41_504,
    ("VPT", "vit_b16_c8_ep5_batch4"): 73_728,
    ("IVLP", "vit_b16_c4_ep5_batch4_language_only"): 24_576,
    ("IVLP", "vit_b16_c2_ep5_batch4_2+2ctx"): 30_720,
    ("IVLP", "vit_b16_c4_ep20_batch4_4+4ctx"): 46_080,
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx"): 3_555_072,
    ("MaPLe", "vit_b16_c2_ep2_batch4_2ctx_cross_datasets"): 1_185_024,
    ("PromptSRC", "vit_b16_c4_ep20_batch4_4+4ctx"): 46_080,
    ("PromptSRC", "vit_b16_c4_ep20_batch4_4+4ctx_cross_datasets"): 15_360,
    ("MMRL", "vit_b16"): 4_992_256,
    ("MMRLPlusPlus", "vit_b16"): 813_312,
    ("CoPrompt", "vit_b16_cross_datasets"): 5_014_528,  # 4 tokens in 12 blocks
    ("CoPrompt", "coprompt"): 3_817_216,  # 2 in 9
    ("MPL", "vit_b16_c1_add2_rm1"): 6_702_336,
    ("MPL", "vit_b16_c1_add2_rm1_cross_datasets"): 512 + MAP + 2 * 512 + 2 * 2 * MAP,
    ("LoRVP", "vit_b16_r4_ep20_batch32"): 5_376,
    ("MMLoP", "vit_b16_base2new"): 11_556,
    ("MMLoP", "vit_b16_fewshot"): 11_556,
    ("MMLoP", "vit_b16_cross_datasets"): 3_852,
}


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], int]:
    return counts()


@pytest.mark.parametrize(("setting", "expected"), EXPECTED.items(), ids=lambda v: str(v))
def test_count(counted, setting, expected):
    assert counted[setting] == expected
