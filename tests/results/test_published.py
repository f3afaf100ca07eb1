"""The published figures against each other, and ours beside them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from statistics import fmean, pstdev

import pytest

import parse_test_res
from protocols import ELEVEN, VARIANTS
from results.published.figures import COLUMNS, FOLDER, Figure, read_published
from results.rows import harmonic

from .writing import NODES, base2new, few_shot, transfer, write_run

FIGURES = read_published()
PAPER = "arXiv 2602.21397v1"
NINE = [d for d in ELEVEN if d not in ("imagenet", "sun397")]

# --- the data -------------------------------------------------------------------------------------

# Source -> methods, and figures of each: data sets and average, times metrics, times shots.
TABLES = {
    f"{PAPER}, table 1": (20, {12 * 3}),
    f"{PAPER}, table 2": (12, {6}),
    # Zero-shot CLIP has no shots.
    f"{PAPER}, table 3": (13, {12, 12 * 3}),
    f"{PAPER}, table 6": (13, {12, 12 * 3}),
    f"{PAPER}, table 7": (4, {10 * 3}),
    f"{PAPER}, table 8": (5, {12 * 3}),
    f"{PAPER}, table 9": (3, {10 * 3}),
    f"{PAPER}, table 10": (3, {10 * 3}),
    f"{PAPER}, table 11": (3, {10 * 3}),
    f"{PAPER}, ablation of the components": (5, {3}),
    "multimodal-prompt-learning/README.md; PromptSRC/README.md": (4, {3}),
    "multimodal-prompt-learning/README.md, model zoo": (3, {3}),
    "PromptSRC/README.md": (3, {3}),
    "KgCoOp/README.md": (2, {3}),
    "Awesome-Prompt-Adapter-Learning-for-VLMs/README.md": (3, {3}),
    "VLM-MultiModalAdapter/README.md": (1, {3}),
    # averages of cross-dataset transfer and domain generalisation
    "VLM-MMApp/README.md": (1, {2}),
    "CoPrompt/README.md": (1, {3}),
    "CLIP-SVD/README.md": (1, {3 + 5}),
    # averages for five numbers of shots, and mostly ImageNet
    "Tip-Adapter/exp.log": (3, {5, 5 * 2}),
    "CoOp/COOP.md, sample output of the parser": (1, {5}),
    "CLIP/notebooks/Prompt_Engineering_for_ImageNet.ipynb": (1, {2}),
}
# (table, method, data set) whose printed H is not that of the printed base and new.
ODD_H = {
    ("1", "LASP", "caltech101"): (96.16, 96.13),
    ("1", "RPO", "average"): (77.78, 77.94),
    ("1", "RPO", "caltech101"): (96.03, 96.14),
    ("1", "RPO", "dtd"): (68.61, 68.65),
    ("1", "MetaPrompt", "average"): (79.09, 79.36),
    ("1", "MetaPrompt", "stanford_cars"): (75.48, 75.67),
    ("1", "CLIP-LoRA", "dtd"): (71.39, 71.88),
    ("1", "MMA", "ucf101"): (82.20, 83.01),
    ("9", "MMLoP, rank 4", "eurosat"): (79.82, 79.80),
    ("9", "MMLoP, rank 4", "oxford_flowers"): (85.93, 85.96),
    ("README.md", "ProDA", "average"): (76.65, 78.59),
}
# (table, method, metric, shots) whose printed average is not that of the printed data sets.
ODD_AVERAGE = {
    ("1", "LASP", "base", 16): (82.70, 82.69),
    ("1", "LASP", "new", 16): (74.90, 74.91),
    ("1", "MetaPrompt", "base", 16): (83.65, 83.66),
    ("1", "MMA", "new", 16): (76.80, 76.94),
    ("6", "MMA", "accuracy", 16): (76.7, 76.64),
}


def table_of(figure: Figure) -> str:
    """Number of the table, or the end of another source."""
    return figure.source.replace("/", " ").split()[-1]


def test_every_table_is_complete():
    counts = defaultdict(Counter)
    for figure in FIGURES:
        counts[figure.source][figure.method] += 1
    found = {source: (len(methods), set(methods.values())) for source, methods in counts.items()}
    assert found == TABLES
    numbered = [f for f in FIGURES if f.source.startswith(f"{PAPER}, table")]
    assert len(numbered) == 2250
    for figure in FIGURES:
        if len(counts[figure.source]) > 1 and figure.protocol != "dg":
            assert figure.dataset in (*figure.averaged, "average"), figure


def test_every_figure_has_a_source_and_a_backbone_and_stands_once():
    for figure in FIGURES:
        assert figure.source and figure.backbone, figure
        assert 0 <= figure.percent <= 100
        assert figure.dataset in ("average", *ELEVEN, *VARIANTS)
    keys = [
        (f.source, f.method, f.protocol, f.dataset, f.shots, f.backbone, f.metric, f.seed)
        for f in FIGURES
    ]
    assert len(keys) == len(set(keys))


def test_printed_h_is_that_of_base_and_new():
    groups = defaultdict(dict)
    for figure in FIGURES:
        groups[figure.source, figure.method, figure.dataset][figure.metric] = figure
    odd = {}
    for (_, method, dataset), group in groups.items():
        if "H" not in group:
            continue
        figure = group["H"]
        h = harmonic(group["base"].percent, group["new"].percent)
        if "H of the printed base and new is" in figure.note:
            assert f"base and new is {h:.2f}" in figure.note
            odd[table_of(figure), method, dataset] = figure.percent, round(h, 2)
        else:
            # base, new and H are rounded to 0.01 each
            assert h == pytest.approx(figure.percent, abs=0.0151), figure
    assert odd == ODD_H


def test_printed_averages_are_those_of_the_data_sets():
    groups = defaultdict(dict)
    for f in FIGURES:
        groups[f.source, f.method, f.metric, f.shots, f.backbone][f.dataset] = f
    odd, checked = {}, 0
    for (_, method, metric, shots, _), group in groups.items():
        figure = group.get("average")
        # H of an average is that of the averages; of some averages no data set was printed.
        if figure is None or metric == "H" or not {*figure.averaged} <= {*group}:
            continue
        checked += 1
        mean = fmean(group[d].percent for d in figure.averaged)
        if "mean of the printed data sets" in figure.note:
            assert figure.note.endswith(f"is {mean:.2f}")
            odd[table_of(figure), method, metric, shots] = figure.percent, round(mean, 2)
        else:
            # all are rounded to the same decimals
            unit = 10.0 ** -len(figure.value.partition(".")[2])
            assert mean == pytest.approx(figure.percent, abs=1.01 * unit), figure
    assert checked == 20 * 2 + 12 + 2 * (1 + 12 * 3) + (4 + 5 + 3 + 3 + 3) * 2
    assert odd == ODD_AVERAGE


def test_published_differences_of_maple_over_cocoop():
    value = {
        (f.method, f.metric): f.percent for f in FIGURES if f.source.endswith("PromptSRC/README.md")
    }
    assert value["MaPLe", "new"] - value["CoCoOp", "new"] == pytest.approx(3.45)
    assert value["MaPLe", "H"] - value["CoCoOp", "H"] == pytest.approx(2.72)


def test_published_mean_over_seeds_is_that_of_the_seeds():
    figures = [f for f in FIGURES if f.source.startswith("CoOp/")]
    seeds = [f.percent for f in figures if f.seed]
    mean, std = (
        next(f.percent for f in figures if f.metric == m and not f.seed)
        for m in ("accuracy", "accuracy_std")
    )
    assert len(seeds) == 3
    assert round(fmean(seeds), 2) == mean
    assert round(pstdev(seeds), 2) == std


def test_tables_that_share_a_run_agree():
    """The default of tables 9 to 11 is the run without drift correction, not MMLoP itself."""

    def printed(table: str, method: str) -> dict[tuple[str, str], float]:
        return {
            (f.dataset, f.metric): f.percent
            for f in FIGURES
            if (f.source, f.method) == (f"{PAPER}, table {table}", method)
            and f.dataset in NINE
            and f.metric != "H"
        }

    corrected = printed("7", "MMLoP, symmetric KL, drift correction")
    assert corrected == printed("1", "MMLoP") == printed("8", "MMLoP")
    without = printed("7", "MMLoP, symmetric KL")
    for table, method in (("9", "rank 1"), ("10", "4 tokens"), ("11", "depth 9")):
        assert printed(table, f"MMLoP, {method}") == without
    assert len(without) == 18 and without != corrected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "about 80"}, "line 2: could not convert"),
        ({"shots": "few"}, "line 2: invalid literal"),
        ({"source": ""}, "line 2: needs a source"),
        (
            {"protocol": "base-to-new"},
            "line 2: needs a source, and a protocol of base2new, .*, ablation",
        ),
        ({"without": "digits"}, "line 2: digits cannot be missing from average"),
        ({"dataset": "dtd", "without": "dtd"}, "line 2: dtd cannot be missing from dtd"),
        ({"metric": None}, "its columns must be method,"),
    ],
)
def test_bad_line_of_a_data_file(changes, message, tmp_path):
    with open(FOLDER / "repositories.csv", encoding="utf-8") as file:
        line = next(csv.DictReader(file)) | changes
    columns = [column for column in line if line[column] is not None]
    with open(tmp_path / "published.csv", "w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerow(line)
    with pytest.raises(ValueError, match=f"published.csv.* {message}"):
        read_published(tmp_path)


def test_a_line_with_a_field_too_many_and_a_folder_without_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no published figures"):
        read_published(tmp_path)
    text = ",".join(COLUMNS) + "\n" + "," * len(COLUMNS) + "\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"a.csv, line 2: needs {len(COLUMNS)} fields"):
        read_published(tmp_path)


def test_trainers_are_those_of_the_registry():
    import trainers  # noqa: F401  # registers them
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    for figure in FIGURES:
        assert figure.trainer in ("", *names), figure
        assert figure.trainer == figure.method or figure.method not in names, figure


def test_figures_of_no_trainer_are_of_methods_that_are_not_here():
    """Tip-Adapter-F and LP++ in print are TipAdapterF and LPPlusPlus."""
    import trainers  # noqa: F401  # registers them
    from dassl.engine import TRAINER_REGISTRY

    here = {name.lower() for name in TRAINER_REGISTRY.registered_names()}
    for method in {figure.method for figure in FIGURES if not figure.trainer}:
        name = method.lower().replace("++", "plusplus")
        assert "".join(filter(str.isalnum, name)) not in here, method


def shipped(trainer: str) -> dict[str, dict[str, str]]:
    """Config file -> key -> value as a log shows it, of all shipped files of a trainer."""
    import datasets
    import trainers
    from dassl.config import get_cfg_default

    def flat(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", str(value)

    found = {}
    for path in sorted((FOLDER.parents[1] / "configs/trainers" / trainer).glob("*.yaml")):
        cfg = get_cfg_default()
        trainers.extend_cfg(cfg)
        datasets.extend_cfg(cfg)
        cfg.merge_from_file(str(path))
        found[path.stem] = dict(flat(cfg))
    return found


@pytest.mark.parametrize("trainer", sorted({f.trainer for f in FIGURES} - {""}))
def test_a_shipped_configuration_meets_the_published_settings(trainer):
    configs = shipped(trainer)
    backbones = {config["MODEL.BACKBONE.NAME"] for config in configs.values()}
    asked = {
        (f.protocol, f.backbone, f.settings)
        for f in FIGURES
        if f.trainer == trainer and f.backbone in backbones
    }
    assert asked
    for protocol, backbone, settings in asked:
        for key, _ in settings:
            assert all(key in config for config in configs.values()), key
        # Steps of an ablation are set on the command line.
        assert protocol == "ablation" or any(
            config["MODEL.BACKBONE.NAME"] == backbone
            and all(config[key] in values.split("|") for key, values in settings)
            for config in configs.values()
        ), (protocol, backbone, settings)


# --- ours beside them -----------------------------------------------------------------------------


def compare(capsys, output, style: str = "json", *words: str) -> str:
    words = ["--output", str(output), "--compare", "--format", style, *words]
    assert parse_test_res.main(words) == 0
    return capsys.readouterr().out


def compared(capsys, output, *words: str, **wanted) -> list[dict]:
    """The records with these values that have a published figure."""
    records = json.loads(compare(capsys, output, "json", *words))
    return [r for r in records if "published" in r and r.items() >= wanted.items()]


def reasons(capsys, output, **wanted) -> set[str]:
    """Why the records with these values have no published figure; empty where they have one."""
    records = json.loads(compare(capsys, output))
    chosen = [r for r in records if r.items() >= wanted.items()]
    assert chosen
    return {r.get("not_compared", "") for r in chosen}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def settings(**changes: object) -> str:
    """What the log of an MMLoP run with other settings than the paper's shows."""
    lines = [line.partition(": ") for line in NODES["MMLoP"].split("|")]
    return "|".join(f"{key}: {changes.get(key, value)}" for key, _, value in lines)


AVERAGE = "average over 11 data sets"


def test_average_beside_the_published_one(tmp_path, capsys):
    for dataset in ELEVEN:
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0), 2: (83.0, 76.0)}, config="c")
    found = compared(capsys, tmp_path, dataset=AVERAGE)
    # Two sources print the same figures.
    assert [r["metric"] for r in found] == [m for m in ("base", "new", "H") for _ in range(2)]
    h = 2 * 82.5 * 75.5 / 158
    deviation = pstdev([2 * 82 * 75 / 157, 2 * 83 * 76 / 159])
    for metric, ours, spread, published in (
        ("base", 82.5, 0.5, 82.28),
        ("new", 75.5, 0.5, 75.14),
        ("H", h, deviation, 78.55),
    ):
        paper, repository = (r for r in found if r["metric"] == metric)
        for record in (paper, repository):
            assert record["ours"] == pytest.approx(ours, abs=1e-4)
            assert record["ours_std"] == pytest.approx(spread, abs=1e-4)
            assert record["published"] == published
            assert record["difference"] == pytest.approx(ours - published, abs=1e-4)
            ratio = (ours - published) / spread
            assert record["difference_over_std"] == pytest.approx(ratio, abs=1e-3)
        assert paper["source"] == f"{PAPER}, table 1"
        assert "multimodal-prompt-learning/README.md" in repository["source"]
    lines = list(csv.DictReader(io.StringIO(compare(capsys, tmp_path, "csv"))))
    differences = [float(r["difference"]) for r in lines if r["dataset"] == AVERAGE]
    assert differences == [r["difference"] for r in found]
    table = compare(capsys, tmp_path, "github")
    (row,) = [line for line in table.splitlines() if AVERAGE in line and "| H " in line]
    assert cells(row)[:6] == ["MaPLe", "c", "16", AVERAGE, "MaPLe", "H"]
    ratio = f"{(h - 78.55) / deviation:+.1f}"
    assert cells(row)[7:] == ["78.55", f"{h - 78.55:+.2f}", ratio, "[1] [2]", "2"]
    assert f"- [1] {PAPER}, table 1\n" in table
    assert "- [2] multimodal-prompt-learning/README.md; PromptSRC/README.md; 5 epochs" in table
    assert "in deviations" in table and "not compared" not in table
    assert "78.55" in compare(capsys, tmp_path, "latex")
    # Half a 95% interval of two seeds.
    ratio = f"{(h - 78.55) / (1.96 * deviation / 2**0.5):+.1f}"
    table = compare(capsys, tmp_path, "github", "--ci95")
    (row,) = [line for line in table.splitlines() if AVERAGE in line and "| H " in line]
    assert cells(row)[9] == ratio and "in intervals" in table


def test_each_data_set_beside_the_published_one(tmp_path, capsys):
    base2new(tmp_path, "dtd", "MaPLe", {1: (80.0, 60.0), 2: (82.0, 60.0)})
    base2new(tmp_path, "eurosat", "MaPLe", {1: (94.0, 73.0)})
    found = {
        (r["dataset"], r["metric"]): (r["published"], r.get("difference_over_std"))
        for r in compared(capsys, tmp_path)
    }
    assert found["dtd", "base"] == (80.36, pytest.approx(0.64))
    # Seeds that agree have no deviation, and neither has one seed.
    assert found["dtd", "new"] == (59.18, None)
    assert found["eurosat", "base"] == (94.07, None)
    table = compare(capsys, tmp_path, "github")
    ratios = {tuple(cells(x)[3:6:2]): cells(x)[9] for x in table.splitlines() if "MaPLe" in x[:9]}
    assert ratios["dtd", "base"] == "+0.6"
    assert ratios["dtd", "new"] == "-"
    assert ratios["eurosat", "H"] == "one seed"
    assert "- not compared, an average of 2/11 data sets only: MaPLe vit_b16 " in table


def test_sources_that_disagree_are_all_shown(tmp_path, capsys):
    node = "N_CTX_TEXT: 4|N_CTX_VISION: 4|PROMPT_DEPTH_TEXT: 9|PROMPT_DEPTH_VISION: 9"
    for dataset in ELEVEN:
        base2new(tmp_path, dataset, "PromptSRC", {1: (84.0, 76.0)}, node=node)
    found = {
        r["source"]: r["published"] for r in compared(capsys, tmp_path, dataset=AVERAGE, metric="H")
    }
    assert found == {f"{PAPER}, table 1": 79.62, "PromptSRC/README.md": 79.97}
    table = compare(capsys, tmp_path, "github")
    rows = [cells(x) for x in table.splitlines() if AVERAGE in x and "| H " in x]
    assert [(row[7], row[10]) for row in rows] == [("79.62", "[1]"), ("79.97", "[2]")]


def test_the_embedded_backbone_is_not_compared(tmp_path, capsys):
    for dataset in ELEVEN:
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0)}, config="tiny", backbone="tiny")
    assert compared(capsys, tmp_path) == []
    assert reasons(capsys, tmp_path) == {"backbone tiny, published ViT-B/16"}
    table = compare(capsys, tmp_path, "github")
    assert "- not compared, backbone tiny, published ViT-B/16: MaPLe tiny (12 rows)" in table
    assert "- nothing\n" in table


def test_the_backbone_is_the_logs_not_the_folders(tmp_path, capsys):
    for dataset in ELEVEN:
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0)}, backbone="ViT-B/32")
    assert reasons(capsys, tmp_path) == {"backbone ViT-B/32, published ViT-B/16"}


def test_average_of_fewer_data_sets_is_not_compared(tmp_path, capsys):
    for dataset in ELEVEN[:-1]:
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0)})
    found = reasons(capsys, tmp_path, dataset=AVERAGE)
    assert found == {"an average of 10/11 data sets only"}
    for dataset in ("digits", "shapes"):
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0)})
    found = reasons(capsys, tmp_path, dataset="average of digits, shapes")
    assert found == {"no published figure of this average"}


def test_other_settings_are_not_compared(tmp_path, capsys):
    for dataset in ELEVEN:
        deeper = NODES["MaPLe"].replace("PROMPT_DEPTH: 9", "PROMPT_DEPTH: 12")
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0)}, node=deeper)
    assert reasons(capsys, tmp_path) == {"TRAINER.MAPLE.PROMPT_DEPTH is 12, published 9"}
    for dataset in ELEVEN:
        base2new(tmp_path, dataset, "MaPLe", {1: (82.0, 75.0)}, node="N_CTX: 2")
    assert reasons(capsys, tmp_path) == {
        "TRAINER.MAPLE.PROMPT_DEPTH is not in the logs, published 9"
    }


@pytest.mark.parametrize(
    ("node", "optim", "reason"),
    [
        ({}, {}, ""),
        # The paper can be read as either.
        ({"TEXT_PROMPT": "before"}, {}, ""),
        (
            {"TEXT_PROMPT": "added"},
            {},
            "TRAINER.MMLOP.TEXT_PROMPT is added, published replace or before",
        ),
        ({"INIT_STD": 0.02}, {}, "TRAINER.MMLOP.INIT_STD is 0.02, published 0.05"),
        ({}, {"LR": 0.01}, "OPTIM.LR is 0.01, published 0.0025"),
        ({}, {"MAX_EPOCH": 50}, "OPTIM.MAX_EPOCH is 50, published 30"),
        (
            {"RANK": 2},
            {"CLIP_GRAD_NORM": 1.0},
            "TRAINER.MMLOP.RANK is 2, published 1; OPTIM.CLIP_GRAD_NORM is 1.0, published 0.0",
        ),
    ],
)
def test_mmlop_is_compared_in_the_papers_settings_only(node, optim, reason, tmp_path, capsys):
    base2new(tmp_path, "dtd", "MMLoP", {1: (82.0, 61.0)}, node=settings(**node), optim=optim)
    assert reasons(capsys, tmp_path) == {reason}


# Name of a run -> what differs from MMLoP, and the figures that it meets: table -> published as.
OWN_U = {"SHARED_U": False}
NO_DRIFT = {"DRIFT_CORRECTION": False}
PLAIN = NO_DRIFT | {"CONSISTENCY": False}
STEPS = {
    "ivlp": (PLAIN | {"LOW_RANK": False}, {"8": "IVLP (MMLoP's ablation)"}),
    "lowrank": (PLAIN | OWN_U, {"8": "MMLoP, low rank only"}),
    "consistency": (NO_DRIFT | OWN_U, {"8": "MMLoP, low rank, consistency"}),
    "drift": (OWN_U, {"8": "MMLoP, low rank, consistency, drift correction"}),
    "shared": (
        {},
        {"1": "MMLoP", "7": "MMLoP, symmetric KL, drift correction", "8": "MMLoP"},
    ),
    "nodrift": (
        NO_DRIFT,
        {
            "7": "MMLoP, symmetric KL",
            "9": "MMLoP, rank 1",
            "10": "MMLoP, 4 tokens",
            "11": "MMLoP, depth 9",
        },
    ),
    "oneway": ({"LOGIT_LOSS": "one-way"}, {"7": "MMLoP, one-way KL, drift correction"}),
    "oneway_nodrift": (NO_DRIFT | {"LOGIT_LOSS": "one-way"}, {"7": "MMLoP, one-way KL"}),
    "rank2": (NO_DRIFT | {"RANK": 2}, {"9": "MMLoP, rank 2"}),
    "rank4": (NO_DRIFT | {"RANK": 4}, {"9": "MMLoP, rank 4"}),
    "ctx2": (NO_DRIFT | {"N_CTX": 2}, {"10": "MMLoP, 2 tokens"}),
    "ctx8": (NO_DRIFT | {"N_CTX": 8}, {"10": "MMLoP, 8 tokens"}),
    "depth7": (NO_DRIFT | {"PROMPT_DEPTH": 7}, {"11": "MMLoP, depth 7"}),
    "depth11": (NO_DRIFT | {"PROMPT_DEPTH": 11}, {"11": "MMLoP, depth 11"}),
    "rank2_drift": ({"RANK": 2}, {}),
    "lowrank_shared": (PLAIN, {}),
}


def test_runs_of_the_ablation_meet_their_own_figures(tmp_path, capsys):
    for name, (changes, _) in STEPS.items():
        run = {"config": f"vit_b16_base2new-{name}", "node": settings(**changes)}
        base2new(tmp_path, "dtd", "MMLoP", {1: (82.0, 61.0)}, **run)
    found = defaultdict(dict)
    published = {(f.source, f.method, f.dataset, f.metric): f.percent for f in FIGURES}
    for r in compared(capsys, tmp_path, metric="new"):
        table = r["source"].split()[-1]
        found[r["config"].partition("-")[2]][table] = r["published_as"]
        assert r["protocol"] == ("base2new" if table == "1" else "ablation")
        key = r["source"], r["published_as"], "dtd", "new"
        assert r["published"] == published[key]
        assert r["difference"] == pytest.approx(61 - published[key])
    assert found == {name: figures for name, (_, figures) in STEPS.items() if figures}
    table = compare(capsys, tmp_path, "github")
    (row,) = [cells(x) for x in table.splitlines() if "-nodrift " in x and "| new " in x]
    assert row[4] == "MMLoP, symmetric KL" and row[10].count("[") == 4
    assert "table 9, there MMLoP, rank 1; 30 epochs; without drift correction" in table
    assert "published 1: MMLoP vit_b16_base2new-rank2_drift (dtd)" in table


def test_averages_over_nine_data_sets(tmp_path, capsys):
    """Nine meet the average over nine and not that over eleven, and eleven meet both."""
    for number, dataset in enumerate(ELEVEN):
        seeds = {1: (80.0 + number, 70.0), 2: (81.0 + number, 72.0)}
        base2new(tmp_path, dataset, "MMLoP", seeds, config="all")
        if dataset in NINE:
            node = settings(**NO_DRIFT, RANK=4)
            base2new(tmp_path, dataset, "MMLoP", seeds, config="nine", node=node)
        if dataset in NINE[1:]:
            node = settings(**NO_DRIFT)
            base2new(tmp_path, dataset, "MMLoP", seeds, config="eight", node=node)
    nine = "average over 9 data sets"
    (record,) = compared(capsys, tmp_path, config="nine", dataset=nine, metric="base")
    ours = 80.5 + fmean(number for number, d in enumerate(ELEVEN) if d in NINE)
    assert record["ours"] == pytest.approx(ours, abs=1e-4)
    assert record["ours_std"] == pytest.approx(0.5)
    assert record["seeds"] == 2
    assert (record["published"], record["published_as"]) == (84.80, "MMLoP, rank 4")
    assert compared(capsys, tmp_path, config="nine", dataset=AVERAGE) == []
    found = {
        (r["dataset"], r["source"].split()[-1]): r["published"]
        for r in compared(capsys, tmp_path, config="all", metric="H")
        if r["dataset"] in (nine, AVERAGE)
    }
    assert found == {
        (AVERAGE, "1"): 79.70,
        (AVERAGE, "8"): 79.69,
        (AVERAGE, "components"): 79.70,
        (nine, "7"): 80.30,
    }
    # Its last reason; the average over eleven of such runs was never published.
    found = reasons(capsys, tmp_path, config="eight", dataset=nine)
    assert found == {"an average of 8/9 data sets only"}
    found = reasons(capsys, tmp_path, config="eight", dataset=AVERAGE)
    assert found == {"no published figure of this average"}


def test_domain_generalisation_of_mmlop(tmp_path, capsys):
    run = {"node": settings(PROMPT_DEPTH=3), "optim": {"MAX_EPOCH": 50}}
    few_shot(tmp_path, "imagenet", "MMLoP", 16, {1: 71.5}, **run)
    for number, dataset in enumerate(VARIANTS):
        transfer(tmp_path, dataset, "MMLoP", {1: 60.0 + number}, **run)
    write_run(tmp_path / "ZeroshotCLIP/vit_b16/imagenet_a", 47.0, "ZeroshotCLIP", "imagenet_a")
    found = {(r["trainer"], r["dataset"]): r for r in compared(capsys, tmp_path, protocol="dg")}
    assert {key: r["published"] for key, r in found.items()} == {
        ("MMLoP", "imagenet"): 71.00,
        ("MMLoP", "imagenetv2"): 64.30,
        ("MMLoP", "imagenet_sketch"): 49.07,
        ("MMLoP", "imagenet_a"): 50.83,
        ("MMLoP", "imagenet_r"): 77.63,
        ("MMLoP", "average over 4 variants"): 60.46,
        ("ZeroshotCLIP", "imagenet_a"): 47.77,
    }
    record = found["MMLoP", "average over 4 variants"]
    assert record["difference"] == pytest.approx(61.5 - 60.46)


def test_few_shot_on_both_backbones(tmp_path, capsys):
    for backbone, config in (("ViT-B/16", "vit_b16_fewshot"), ("ViT-B/32", "vit_b32_fewshot")):
        run = {"config": config, "backbone": backbone, "optim": {"MAX_EPOCH": 50}}
        for shots in (1, 4, 8, 16):
            few_shot(tmp_path, "dtd", "MMLoP", shots, {1: 60.0, 2: 61.0}, **run)
        few_shot(tmp_path, "dtd", "ZeroshotCLIP", 16, {1: 44.0}, config=config, backbone=backbone)
    found = compared(capsys, tmp_path)
    assert {(r["backbone"], r["shots"]): r["published"] for r in found} == {
        ("ViT-B/16", 0): 43.6,
        ("ViT-B/16", 4): 64.7,
        ("ViT-B/16", 8): 68.9,
        ("ViT-B/16", 16): 72.6,
        ("ViT-B/32", 0): 42.6,
        ("ViT-B/32", 4): 60.0,
        ("ViT-B/32", 8): 65.7,
        ("ViT-B/32", 16): 68.8,
    }
    assert reasons(capsys, tmp_path, shots=1) == {"1 shot, published 16"}
    table = compare(capsys, tmp_path, "github")
    # As many decimals as printed.
    (row,) = [cells(x) for x in table.splitlines() if "vit_b32_fewshot | 4 " in x]
    assert row[7:9] == ["60.0", "+0.50"]


def test_few_shot_on_resnet_50(tmp_path, capsys):
    node = "N_CTX: 16|CTX_INIT: |CSC: False|CLASS_TOKEN_POSITION: end"
    run = {"config": "rn50", "backbone": "RN50", "node": node}
    few_shot(tmp_path, "caltech101", "CoOp", 16, {1: 91.0, 2: 93.0}, **run)
    few_shot(tmp_path, "caltech101", "CoOp", 8, {1: 90.0}, **run)
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 60.0}, **run)
    (record,) = compared(capsys, tmp_path)
    assert (record["ours"], record["published"], record["difference"]) == (92.0, 92.0, 0.0)
    assert reasons(capsys, tmp_path, shots=8) == {"8 shots, published 16"}
    assert reasons(capsys, tmp_path, dataset="dtd") == {"no published figure of this data set"}


def test_methods_without_figures(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "MPL", 1, {1: 50.0})
    assert reasons(capsys, tmp_path) == {"no published figure"}


def test_settings_are_read_from_what_a_run_prints(tmp_path, capsys):
    """A run of the ablation as typed: what its log shows is what the figure asks for."""
    import train

    words = ["--root", "data", "--seed", "1", "--trainer", "MMLoP"]
    words += ["--dataset-config-file", "configs/datasets/dtd.yaml"]
    words += ["--config-file", "configs/trainers/MMLoP/vit_b16_base2new.yaml"]
    words += ["OPTIM.CLIP_GRAD_NORM", "0", "TRAINER.MMLOP.RANK", "2"]
    args = train.build_parser().parse_args([*words, "TRAINER.MMLOP.DRIFT_CORRECTION", "False"])
    train.print_settings(args, train.setup_cfg(args))
    log = capsys.readouterr().out + "Finish training\n* accuracy: 82.00%\n"
    folder = tmp_path / "base2new/train_base/dtd/shots_16/MMLoP/vit_b16_base2new-rank2/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(log, encoding="utf-8")
    (record,) = compared(capsys, tmp_path)
    assert (record["published_as"], record["published"]) == ("MMLoP, rank 2", 82.60)


# --- the published tables alone -------------------------------------------------------------------


def published(capsys, *words: str) -> str:
    assert parse_test_res.main(["--published", *words]) == 0
    return capsys.readouterr().out


def test_published_tables_have_every_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "nothing"))
    text = published(capsys)
    assert text == published(capsys, "--format", "markdown")
    tables = {}
    for table in text.split("### ")[1:]:
        title, *lines = table.splitlines()
        header, _, *rows = (cells(line) for line in lines if line.startswith("|"))
        tables[title] = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    printed = Counter(
        value for rows in tables.values() for row in rows.values() for value in row.values()
    )
    # CLIP stands at all three numbers of shots, and a figure of two sources with both.
    shown = Counter()
    for figure in FIGURES:
        times = 3 if figure.protocol == "fewshot" and figure.method == "CLIP" else 1
        shown[figure.value] += times * len(figure.source.split("; "))
    assert printed - Counter({"-": printed["-"]}) == shown
    table = tables[f"Base-to-new, {PAPER}, table 1, ViT-B/16, 16 shots (H, %)"]
    assert len(table) == 20
    assert list(table["MMLoP"]) == [*ELEVEN, "average (11)"]
    assert (table["PromptSRC"]["average (11)"], table["MMLoP"]["eurosat"]) == ("79.62", "85.22")
    assert "- RPO (average (11)): H of the printed base and new is 77.94\n" in text
    table = tables[f"Few-shot, {PAPER}, table 6, ViT-B/32, 8 shots (accuracy, %)"]
    assert (table["CLIP"]["average (11)"], table["MMLoP"]["average (11)"]) == ("61.8", "75.5")
    table = tables[f"Domain generalisation, {PAPER}, table 2, ViT-B/16, 16 shots (accuracy, %)"]
    assert list(table["MMLoP"]) == ["imagenet (source)", *VARIANTS, "average (4)"]
    table = tables[f"Ablation, {PAPER}, table 9, ViT-B/16, 16 shots (new, %)"]
    assert list(table["MMLoP, rank 2"]) == [*NINE, "average (9)"]
    assert "- all: without drift correction: " in text
    title = "Base-to-new, PromptSRC/README.md, ViT-B/16, 16 shots, average (11) (%)"
    assert tables[title]["PromptSRC"] == {"base": "84.26", "new": "76.10", "H": "79.97"}


@pytest.mark.parametrize("style", ["csv", "json"])
def test_published_figures_as_records(style, capsys):
    text = published(capsys, "--format", style)
    records = json.loads(text) if style == "json" else list(csv.DictReader(io.StringIO(text)))
    assert len(records) == len(FIGURES)
    assert list(records[0]) == COLUMNS
    assert fmean(float(r["value"]) for r in records) == pytest.approx(
        fmean(f.percent for f in FIGURES)
    )


def test_published_tables_as_latex(capsys):
    text = published(capsys, "--format", "latex")
    assert text.count(r"\begin{tabular}") == text.count(", %)\n") + text.count(" (%)\n") == 48


@pytest.mark.parametrize(
    "words",
    [
        ["some/where"],
        ["--output", "o"],
        ["--compare"],
        ["--plot", "p"],
        ["--ci95"],
        ["--test-log"],
        ["--keyword", "error"],
    ],
)
def test_published_needs_nothing_else(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_test_res.main(["--published", *words])
    assert "--published takes no directory and no option but --format" in capsys.readouterr().err
