"""Cached features of the frozen CLIP against those computed in every step."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adaptation.savings.teacher import (
    FeatureFiles,
    TeacherCache,
    source_fingerprint,
    weights_fingerprint,
)
from clip.model import CLIP
from dassl.engine import build_trainer
from dassl.utils import random_state, tools
from tests.parity_files import recorded_clip, relative_error

FIXED = ("INPUT.TRANSFORMS", ("normalize",))
SEEDED = ("INPUT.SEEDED_VIEWS", True)
OFF = ("MODEL.TEACHER_CACHE_MB", 0)
#: batches of all images of two per class
WHOLE = ("DATALOADER.TRAIN_X.BATCH_SIZE", 10)
#: how far a row may be from the same row among others in a batch of that size; kernels that treat
#: the rows of a matrix alike give 0
ROUNDING = 1e-6

with_teacher = pytest.mark.parametrize("method", ["PromptSRC", "MMLoP"])
of_both_kinds = pytest.mark.parametrize("views", [FIXED, SEEDED], ids=["fixed", "seeded"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where this test's features are kept."""
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


def build(make_cfg, method, *pairs):
    """A trainer on two images per class, and the sizes of its frozen batches and class lists."""
    torch.manual_seed(5)
    short = ("DATASET.NUM_SHOTS", 2, "DATASET.TEMPLATES", ("a photo of a {}.",))
    trainer = build_trainer(make_cfg(method, *short, *pairs))
    clip, images, texts = trainer.model.clip, [], []

    def counted(encode, sizes):
        def counting(what, prompts=None, **options):
            if not prompts:
                sizes.append(len(what))
            return encode(what, prompts, **options)

        return counting

    clip.encode_image = counted(clip.encode_image, images)
    clip.encode_text = counted(clip.encode_text, texts)
    return trainer, images, texts


def run(make_cfg, tmp_path, method, *pairs, name="run", epochs=(2,)):
    """Train; returns the trainer, first gradients, and what ``build`` counts."""
    grads, images, texts = {}, [], []
    for last in epochs:
        setting = ("OUTPUT_DIR", str(tmp_path / name), "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", True)
        setting += ("OPTIM.WARMUP_EPOCH", -1, "TRAIN.CHECKPOINT_FREQ", 1)
        trainer, its_images, its_texts = build(make_cfg, method, *setting, *pairs)
        update, learner = trainer.update, trainer.model.learner

        def recorded(update=update, learner=learner):
            update()
            named = learner.named_parameters()
            grads.update({n: p.grad.clone() for n, p in named if n not in grads})

        trainer.max_epoch, trainer.update = last, recorded
        trainer.train()
        images, texts = images + its_images, texts + its_texts
    return trainer, grads, images, texts


def ask(make_cfg, *pairs, method="MMLoP"):
    """Frozen features of all images; returns the trainer and what ``build`` counts."""
    trainer, images, texts = build(make_cfg, method, *WHOLE, *pairs)
    for batch in trainer.train_loader_x:
        trainer.model.predict(batch["img"], batch.get("view")).frozen()
    trainer.model.teacher_cache.save()
    return trainer, images, texts


def assert_same_learners(a, b, tolerance):
    for key, value in a.model.learner.state_dict().items():
        assert relative_error(b.model.learner.state_dict()[key], value) <= tolerance, key


@with_teacher
@of_both_kinds
def test_a_run_with_known_features_equals_one_without(make_cfg, tmp_path, method, views):
    plain, plain_grads, images, texts = run(make_cfg, tmp_path, method, *views, *OFF, name="plain")
    assert images == [4] * 4, "two epochs of two batches"
    assert texts == [5]

    first, grads, images, texts = run(make_cfg, tmp_path, method, *views, name="first")
    assert grads.keys() == dict(plain.model.learner.named_parameters()).keys()
    for key, grad in plain_grads.items():
        assert torch.equal(grads[key], grad), f"{key}: computed for this very batch"
    assert texts == [5]
    # of ten images the last two of an epoch are dropped: some come in the second epoch only
    assert images in ([4] * 2, [4] * 3, [4] * 4) if views is FIXED else images == [4] * 4
    assert_same_learners(first, plain, 0.0 if views is SEEDED else ROUNDING)

    again, grads, images, texts = run(make_cfg, tmp_path, method, *views, name="again")
    assert images == texts == []
    for key, grad in plain_grads.items():
        assert relative_error(grads[key], grad) < ROUNDING, key
    assert_same_learners(again, plain, ROUNDING)


@of_both_kinds
def test_methods_share_features(make_cfg, tmp_path, views):
    run(make_cfg, tmp_path, "PromptSRC", *views, *WHOLE, name="a")
    _, _, images, texts = run(make_cfg, tmp_path, "MMLoP", *views, *WHOLE, name="b")
    assert images == texts == []


def test_base_classes_share_the_views_of_all(make_cfg):
    views = (*SEEDED, "DATASET.NUM_SHOTS", 8, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    assert ask(make_cfg, *views)[1:] == ([8] * 5, [5])
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    assert ask(make_cfg, *views, *base)[1:] == ([], [3]), "other class names, other texts"


def test_a_resumed_run_uses_what_it_computed(make_cfg, tmp_path):
    views = (*SEEDED, *WHOLE)
    straight, _, _, _ = run(make_cfg, tmp_path, "PromptSRC", *views, *OFF, name="straight")
    resumed, _, images, _ = run(make_cfg, tmp_path, "PromptSRC", *views, name="it", epochs=(1, 2))
    assert resumed.start_epoch == 1 and images == [10, 10]
    assert_same_learners(resumed, straight, ROUNDING)
    shutil.rmtree(tmp_path / "it")
    again, _, images, _ = run(make_cfg, tmp_path, "PromptSRC", *views, name="it", epochs=(1, 2))
    assert again.start_epoch == 1 and images == [], "trained anew, in two parts"


def test_random_views_are_never_cached(make_cfg, folder):
    for _ in range(2):
        _, images, _ = ask(make_cfg)
        assert images == [10]
    assert [file.name.split("-")[0] for file in folder.glob("*.safetensors")] == ["text"]


def test_the_sixty_templates_are_encoded_once(make_cfg):
    trainer, _, texts = ask(make_cfg, "DATASET.TEMPLATES", ())
    assert texts == [5] * 60
    for method in ("PromptSRC", "MMLoP"):
        other, _, texts = ask(make_cfg, "DATASET.TEMPLATES", (), method=method)
        assert texts == []
        kept, computed = (t.model.frozen_text_features() for t in (other, trainer))
        assert torch.equal(kept, computed)


def test_other_settings_miss(make_cfg):
    ask(make_cfg, *FIXED)
    for key, value, images_too, text_too in [
        ("TRAINER.MMLOP.PREC", "bf16", True, True),
        ("TRAINER.MMLOP.PREC", "fp16", True, True),
        ("INPUT.PIXEL_MEAN", [0.48145466, 0.4578275, 0.41], True, False),
        ("INPUT.TRANSFORMS", (), True, False),
        ("INPUT.INTERPOLATION", "bilinear", True, False),
        ("DATASET.TEMPLATES", ("a drawing of a {}.",), False, True),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 5, True, False),
    ]:
        _, images, texts = ask(make_cfg, *FIXED, key, value)
        assert sum(images) == 10 * images_too and texts == [5] * text_too, key
    assert ask(make_cfg, *FIXED)[1:] == ([], [])


def test_other_views_miss(make_cfg):
    every = ("DATASET.NUM_SHOTS", 8, "DATALOADER.TRAIN_X.BATCH_SIZE", 40, *SEEDED)
    ask(make_cfg, *every)
    for other in (("SEED", 2), FIXED, ("INPUT.RRCROP_SCALE", (0.5, 1.0))):
        assert ask(make_cfg, *every, *other)[1:] == ([40], []), other
    assert ask(make_cfg, *every)[1:] == ([], [])


def test_other_weights_miss(make_cfg, tmp_path):
    ask(make_cfg, *FIXED)
    weights = recorded_clip("vit")
    weights["visual.proj"][0, 0] += 1e-3
    torch.save(weights, tmp_path / "other.pt")
    backbone = ("MODEL.BACKBONE.NAME", str(tmp_path / "other.pt"))
    assert ask(make_cfg, *FIXED, *backbone)[1:] == ([10], [5])


@pytest.mark.parametrize("module", [tools, random_state])
def test_other_code_that_reads_or_draws_misses(module, monkeypatch, tmp_path):
    before = source_fingerprint()
    copy = tmp_path / "changed.py"
    copy.write_text(Path(module.__file__).read_text() + "# another way\n")
    monkeypatch.setattr(module, "__file__", str(copy))
    try:
        source_fingerprint.cache_clear()
        assert source_fingerprint() != before
    finally:
        monkeypatch.undo()
        source_fingerprint.cache_clear()


def test_a_changed_image_misses(make_cfg, tmp_path, data_root):
    root = shutil.copytree(data_root, tmp_path / "data")
    setting = (*FIXED, "DATASET.ROOT", str(root))
    trainer, _, _ = ask(make_cfg, *setting)
    path = trainer.dm.dataset.train_x[3].impath
    Image.fromarray(np.zeros((40, 36, 3), np.uint8)).save(path)
    assert ask(make_cfg, *setting)[1:] == ([10], [])
    assert ask(make_cfg, *setting)[1:] == ([], [])


# --- the cache itself -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(16, 32, 2, 64, 8, 77, 49408, 64, 1, 2).eval().requires_grad_(False)


def names(recipe: str, n: int, first: int = 0) -> list[str]:
    return [f"{recipe * 32}/{i:032x}" for i in range(first, first + n)]


def encoder(clip, calls=None):
    def encode(image):
        if calls is not None:
            calls.append(len(image))
        with torch.no_grad():
            return torch.nn.functional.normalize(clip.encode_image(image), dim=-1)

    return encode


def none_needed(*_):
    raise AssertionError("these features are known")


def test_features_come_back_as_they_were(clip):
    image, views = torch.randn(6, 3, 32, 32), names("a", 6)
    first = TeacherCache(clip, "fp32", 10)
    want = encoder(clip)(image)
    assert torch.equal(first.image_features(views, image, encoder(clip)), want)
    assert torch.equal(first.image_features(views, image, none_needed), want)
    first.save()
    second, calls = TeacherCache(clip, "fp32", 10), []
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 3, 3, 0, 1]):
        some = second.image_features([views[i] for i in order], image[order], none_needed)
        assert torch.equal(some, want[order])
        computed = encoder(clip)(image[order])
        assert (some - computed).abs().max() < ROUNDING
    # new views of two recipes among known ones: the batch is computed whole
    more = torch.cat([torch.randn(3, 3, 32, 32), image[3:]])
    mixed = [*names("b", 2), *names("a", 1, first=6), *views[3:]]
    got = second.image_features(mixed, more, encoder(clip, calls))
    assert torch.equal(got, encoder(clip)(more))
    second.image_features(views[:2], image[:2], encoder(clip, calls))
    assert calls == [6, 2], "batches of another size are another matter"
    second.save()
    assert torch.equal(TeacherCache(clip, "fp32", 10).image_features(mixed, more, none_needed), got)


def test_text_features_come_back_where_a_result_would_be(clip):
    """A CPU's matrix products round otherwise on memory of another alignment."""
    computed = torch.randn(4, 64)
    for _ in range(2):
        found = TeacherCache(clip, "fp32", 10).text_features("abcd", ["{}"], lambda: computed)
        assert torch.equal(found, computed)
        assert found.data_ptr() % 64 == computed.data_ptr() % 64
    assert found is not computed


def test_only_views_in_use_stay_in_memory(clip, folder):
    cache, image = TeacherCache(clip, "fp32", 10), torch.randn(2, 3, 32, 32)
    for recipe in "abc":
        cache.image_features(names(recipe, 2), image, encoder(clip))
        cache.save()
    assert [recipe[0] for recipe, _ in cache._banks] == ["c"]
    assert len(list(folder.glob("views-*"))) == 3


def test_fingerprint_of_weights(clip):
    before = weights_fingerprint(clip)
    assert weights_fingerprint(clip) == before
    value = clip.logit_scale.clone()
    clip.logit_scale.add_(1.0)
    changed = weights_fingerprint(clip)
    clip.logit_scale.copy_(value)
    assert changed != before and weights_fingerprint(clip) == before
    half = CLIP(16, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
    half.load_state_dict(clip.state_dict())
    assert weights_fingerprint(half) == before
    assert weights_fingerprint(half.half()) != before


def test_zero_keeps_nothing(clip, folder):
    cache, calls = TeacherCache(clip, "fp32", 0), []
    for _ in range(2):
        cache.image_features(names("a", 2), torch.randn(2, 3, 32, 32), encoder(clip, calls))
        assert cache.text_features(["cat"], ["{}"], lambda: torch.ones(1)) == 1
        cache.save()
    assert calls == [2, 2] and not folder.exists()


@pytest.mark.filterwarnings("ignore:.*is hooked")
@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_hooked_model_keeps_and_looks_up_nothing(make_cfg, tower):
    """The hook is in no key; its effect reaches the frozen and the prompted features."""
    features = {}
    for hooked in (False, True, False):
        trainer, _, _ = build(make_cfg, "PromptSRC", *FIXED, *WHOLE)
        model, batch = trainer.model, next(iter(trainer.train_loader_x))
        owner = model.clip if tower == "text" else model.clip.visual
        with torch.no_grad():
            prompted = [model.text_features()]  # kept from now on
            if hooked:
                owner.transformer.resblocks[0].ln_1.register_forward_hook(lambda *a: 2 * a[-1])
            frozen = model.predict(batch["img"], batch.get("view")).frozen()
            prompted = [model.text_features(), model.image_features(batch["img"])]
        model.teacher_cache.save()
        found = [frozen.text_features, frozen.image_features, *prompted]
        for old, new, text in zip(features.get("first", found), found, (1, 0, 1, 0), strict=True):
            changed = hooked and text == (tower == "text")
            assert torch.equal(old, new) != changed
        features.setdefault("first", found)


def test_a_negative_bound_is_refused(make_cfg):
    with pytest.raises(ValueError, match="TEACHER_CACHE_MB is -1: use 0"):
        build_trainer(make_cfg("MMLoP", "MODEL.TEACHER_CACHE_MB", -1))


def said(capsys) -> str:
    """What was printed, the note on the place of a new folder left out."""
    lines = capsys.readouterr().out.splitlines(keepends=True)
    return "".join(line for line in lines if " are kept in " not in line)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_the_bound_holds_and_the_least_recently_used_go(tmp_path, capsys):
    files = FeatureFiles(1, tmp_path)  # 10^6 bytes
    part = {"features": torch.rand(75_000)}  # 0.3 MB and a header
    for i in range(3):
        files.save("text", {"n": i}, part)
        newest = max(tmp_path.glob("*.safetensors"), key=os.path.getmtime)
        os.utime(newest, ns=(i, i))
    assert torch.equal(files.load("text", {"n": 0})["features"], part["features"])  # is used
    files.save("text", {"n": 3}, part)
    assert size_of(tmp_path) <= 10**6
    assert [files.load("text", {"n": i}) is not None for i in range(4)] == [True, False, True, True]
    files.save("text", {"n": 3}, part)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3, "replacing a file needs no room"
    assert said(capsys) == ""
    for _ in range(2):
        files.save("text", {"n": 4}, {"features": torch.rand(250_000)})
    assert capsys.readouterr().out.count("1.0 MB are not kept: MODEL.TEACHER_CACHE_MB is 1") == 1
    assert files.load("text", {"n": 4}) is None and size_of(tmp_path) > 0


def test_views_stop_being_kept_at_the_bound(clip, folder, capsys):
    cache = TeacherCache(clip, "fp32", 1)
    n = 10**6 // (4 * 16 + 16) + 1000
    image, row = torch.zeros(n, 1), torch.rand(n, 16)
    assert torch.equal(cache.image_features(names("a", n), image, lambda _: row), row)
    cache.files.folder.limit += 10_000  # the header of the file
    cache.save()
    assert 0.9e6 < size_of(folder) <= 1.01e6 and said(capsys) == ""


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[-3] ^= 4
    elif how == "empty":
        data = b""
    else:
        data = b"x" * 200
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "nonsense", "of another key"])
def test_a_damaged_file_is_noted_and_made_anew(clip, folder, capsys, how):
    image, views = torch.randn(2, 3, 32, 32), names("a", 2)

    def features(encode):
        cache = TeacherCache(clip, "fp32", 10)
        found = cache.image_features(views, image, encode)
        cache.save()
        return found

    want = features(encoder(clip))
    (path,) = folder.glob("views-*")
    if how == "of another key":
        other = TeacherCache(clip, "fp32", 10)
        other.image_features(names("b", 2), image + 1, encoder(clip))
        other.save()
        (source,) = set(folder.glob("views-*")) - {path}
        shutil.copy(source, path)
    else:
        damage(path, how)
    assert torch.equal(features(encoder(clip)), want)
    notes = said(capsys).splitlines()
    assert len(notes) == 1 and f"{path} cannot be used and is made anew" in notes[0]
    assert torch.equal(features(none_needed), want)


def unwritable(folder: Path, kind: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o500)


@pytest.mark.parametrize("kind", ["a file", "read-only"])
def test_a_folder_that_cannot_be_written(make_cfg, tmp_path, folder, capsys, kind):
    if kind == "read-only" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    plain, _, _, _ = run(make_cfg, tmp_path, "MMLoP", *FIXED, *WHOLE, *OFF, name="plain")
    unwritable(folder, kind)
    capsys.readouterr()
    trainer, _, images, _ = run(make_cfg, tmp_path, "MMLoP", *FIXED, *WHOLE, name="run")
    out = capsys.readouterr().out
    assert out.count("Note: features of the frozen CLIP are not kept: ") == 1
    assert images == [10], "known in the second epoch"
    assert_same_learners(trainer, plain, ROUNDING)


def test_files_are_used_from_a_folder_that_cannot_be_written(clip, folder, monkeypatch, capsys):
    cache, image = TeacherCache(clip, "fp32", 10), torch.randn(2, 3, 32, 32)
    want = cache.image_features(names("a", 2), image, encoder(clip))
    cache.save()
    (path,) = folder.glob("views-*")

    def refused(*_, **__):
        raise PermissionError("read-only")

    # tests may run as root, whom no mode keeps from writing
    monkeypatch.setattr(os, "utime", refused)
    assert torch.equal(
        TeacherCache(clip, "fp32", 10).image_features(names("a", 2), image, none_needed), want
    )
    assert said(capsys) == "" and path.exists()


def write_rows(folder: Path, process: int) -> None:
    """What one of several processes does: rows of its own, and some that all of them have."""
    files = FeatureFiles(1, folder)
    model = CLIP(16, 32, 1, 64, 16, 77, 100, 64, 1, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    cache = TeacherCache(model, "fp32", 1, folder)
    for turn in range(10):
        views = names("a", 5, first=1000 * process + 5 * turn) + names("a", 3)
        row = torch.tensor([float(int(view[-8:], 16)) for view in views])[:, None].expand(-1, 16)
        assert torch.equal(cache.image_features(views, row, lambda image: image), row)
        cache.save()
        files.save("text", {"process": process, "turn": turn}, {"x": torch.rand(30_000)})
    again = TeacherCache(model, "fp32", 1, folder)
    assert torch.equal(again.image_features(views, row, none_needed), row)


def test_processes_share_a_folder(tmp_path, capfd):
    """Rows of all of them end up in the file, while other files come and go."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_rows, args=(tmp_path, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert size_of(tmp_path) <= 10**6
    assert not list(tmp_path.glob("*.tmp*"))
    (path,) = tmp_path.glob("views-*")
    assert len(load_file(path)["views"]) == 3 + 3 * 50 - 3
    assert "cannot be used" not in capfd.readouterr().out


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / "views-0.safetensors.tmp1234"
    left.write_bytes(b"half")
    FeatureFiles(1, tmp_path).save("text", {}, {"x": torch.rand(3)})
    assert not left.exists()
