"""LoR-VP's classifiers: text, linear head, and label mappings, through training and a resume."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptation.label_mapping import frequency_mapping, source_names
from clip.preprocessing import STD
from dassl.data.data_manager import DatasetWrapper
from dassl.engine import build_trainer
from trainers.lorvp import STARTS, PixelPromptLearner

KEY = "TRAINER.LORVP.SOURCE_NAMES"


@pytest.fixture()
def names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(["crow", "dog", "", "flower", "newt", "oak", "boat", "house"]))
    return str(path)


def setting(key: str, value: object) -> list[object]:
    return [f"TRAINER.LORVP.{key}", value]


@given(
    st.integers(1, 5),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=40),
)
def test_mapping_takes_the_most_frequent_pairs_first(n_target, extra, pairs):
    n_source = n_target + extra
    pairs = [(s % n_source, t % n_target) for s, t in pairs]
    source, target = (torch.tensor([p[i] for p in pairs], dtype=torch.long) for i in (0, 1))
    found = frequency_mapping(source, target, n_source, n_target).tolist()
    counts = {(s, t): pairs.count((s, t)) for s in range(n_source) for t in range(n_target)}
    expected = {}
    for s, t in sorted(counts, key=lambda pair: (-counts[pair], pair)):
        if t not in expected and s not in expected.values():
            expected[t] = s
    assert found == [expected[t] for t in range(n_target)]


@pytest.mark.parametrize("start", STARTS)
def test_start_of_a_bar(start):
    torch.manual_seed(0)
    learner = PixelPromptLearner(200, 4, ("zero", start), STD)
    assert not learner.picture.any()
    # half-widths of torch's Xavier and Kaiming uniform: fans of (3, r, L) are r L and 3 L
    limits = {"xavier": (6 / (800 + 600)) ** 0.5, "kaiming": (6 / 800) ** 0.5, "uniform": 0.1}
    std = {"zero": 0.0, "random": 1.0, "normal": 0.01} | {k: v / 3**0.5 for k, v in limits.items()}
    assert float(learner.right.detach().std()) == pytest.approx(std[start], rel=0.08)


def test_picture_is_added_before_normalisation(make_cfg):
    trainer = build_trainer(make_cfg("LoRVP", *setting("INIT", "normal,random")))
    learner, cfg = trainer.model.learner, trainer.cfg
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    image = torch.rand(2, 3, 32, 32)
    expected = (image + learner.left @ learner.right - mean) / std
    torch.testing.assert_close(learner.change_image((image - mean) / std), expected)
    plain = ["INPUT.TRANSFORMS", ["random_resized_crop"]]
    learner = build_trainer(make_cfg("LoRVP", *plain)).model.learner
    assert learner.pixel_std.flatten().tolist() == [1, 1, 1]


def test_resnet_takes_pixel_prompts(make_cfg, rn_file):
    cfg = make_cfg("LoRVP", "MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64))
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.model.learner.left.any()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("head", ["lp", "flm", "ilm"])
def test_head_learns_is_kept_and_resumes(make_cfg, head, precision, names_file, tmp_path):
    pairs = [*setting("HEAD", head), *setting("SOURCE_NAMES", names_file), "DATASET.NUM_SHOTS", 4]
    pairs += setting("PREC", precision)
    pairs += ["OPTIM.WARMUP_EPOCH", -1, "TEST.NO_TEST", True, "TRAIN.CHECKPOINT_FREQ", 1]
    pairs += ["OPTIM.MAX_EPOCH", 2]

    def run(folder: str, ends: list[int]):
        for end in ends:
            torch.manual_seed(4)
            trainer = build_trainer(make_cfg("LoRVP", *pairs, "OUTPUT_DIR", str(tmp_path / folder)))
            trainer.max_epoch = end
            trainer.train()
        return trainer

    straight, resumed = run("straight", [2]), run("resumed", [1, 2])
    state = straight.model.learner.state_dict()
    for key, value in resumed.model.learner.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert state.keys() == {"left", "right"} | (
        {"head.weight", "head.bias"} if head == "lp" else {"mapping"}
    )
    logits = straight.model_inference(next(iter(straight.test_loader))["img"])
    assert logits.shape[1] == 5
    if head != "lp":
        mapping = state["mapping"].tolist()
        assert len(set(mapping)) == 5
        assert max(mapping) < len(source_names(names_file, KEY)) == 7

    tested = build_trainer(make_cfg("LoRVP", *pairs))
    tested.load_model(str(tmp_path / "straight"), epoch=2)
    image = next(iter(tested.test_loader))["img"]
    torch.testing.assert_close(tested.model_inference(image), straight.model_inference(image))

    other = build_trainer(make_cfg("LoRVP", *pairs, "DATASET.SUBSAMPLE_CLASSES", "base"))
    with pytest.raises(ValueError, match="is class-specific: it fits only the 5 classes"):
        other.load_model(str(tmp_path / "straight"), epoch=2)


@pytest.mark.parametrize(("head", "prompted"), [("flm", False), ("ilm", True)])
def test_mapping_counts_images_that_are_not_augmented(make_cfg, names_file, head, prompted):
    pairs = [*setting("HEAD", head), *setting("SOURCE_NAMES", names_file)]
    torch.manual_seed(5)  # pictures that tell images apart
    trainer = build_trainer(make_cfg("LoRVP", *pairs, *setting("INIT", "random,random")))
    learner, clip = trainer.model.learner, trainer.model.clip
    # the test's CLIP knows few words, and gives equal features to names of others
    learner.source = torch.randn(learner.source.shape, generator=torch.manual_seed(0))
    transform, trainer.test_loader = trainer.test_loader.dataset.transform, None
    trainer.before_train()
    trainer.before_epoch()
    images = DatasetWrapper(trainer.cfg, trainer.dm.dataset.train_x, transform)
    with torch.no_grad():
        batch = torch.stack([item["img"] for item in images])
        features = clip.encode_image(learner.change_image(batch) if prompted else batch)
        source = learner.source_logits(features).argmax(dim=-1)
    labels = torch.tensor([item["label"] for item in images])
    assert len(set(source.tolist())) > 1
    assert torch.equal(learner.mapping, frequency_mapping(source, labels, 7, 5))


def test_source_classes_are_imagenets_unless_a_file_names_them(names_file):
    assert len(source_names("", KEY)) == 1000
    assert source_names(names_file, KEY)[:3] == ["crow", "dog", "flower"]
    with pytest.raises(FileNotFoundError, match=r"SOURCE_NAMES: no file 'nowhere\.txt'"):
        source_names("nowhere.txt", KEY)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbfcat\r\ndog\r\n", None),  # as Windows saves it
        (b"cat\n_\n", r"names\.txt, line 2: the class name '_' is empty"),
        (b"<html></html>", r"names\.txt is a web page"),
        (b"caf\xe9\n", r"names\.txt is not UTF-8 text \(line 1"),
        (b"\n", r"names\.txt is empty"),
    ],
)
def test_source_names_of_a_file(tmp_path, content, says):
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    if says is None:
        assert source_names(str(file), KEY) == ["cat", "dog"]
        return
    with pytest.raises(ValueError, match=says):
        source_names(str(file), KEY)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (setting("INIT", "zero"), "start of the left and the right bar"),
        (setting("INIT", "zero,gaussian"), "zero, random, xavier, kaiming, uniform, normal"),
        (setting("INIT", "zero,zero"), "no gradient"),
        (setting("HEAD", "fm"), "HEAD: 'fm' is not in .*text, lp, flm, ilm"),
        (setting("RANK", 0), "RANK is 0: use 1 to 32"),
        (setting("RANK", 33), "RANK is 33: use 1 to 32"),
    ],
)
def test_settings(make_cfg, pairs, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg("LoRVP", *pairs))


def test_too_few_source_classes(make_cfg, tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("cat\ndog\n")
    pairs = [*setting("HEAD", "flm"), *setting("SOURCE_NAMES", str(file))]
    with pytest.raises(ValueError, match="2 source classes for 5 classes are too few"):
        build_trainer(make_cfg("LoRVP", *pairs))
