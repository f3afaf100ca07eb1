"""Tables and a figure of ``docs/benchmark.md``, laid out from rows of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from results.differences import Difference, paired, seed_differences
from results.published.figures import Figure
from results.rows import Row
from results.tables import cell

#: the method that the others are compared with
OURS = "MMLoP"
#: the paper of OURS, as sources of published figures name it
PAPER = "arXiv 2602.21397v1"
#: what every method is compared with
REFERENCES = ("ZeroshotCLIP", "CoOp", "PromptSRC")
#: run of an ablation -> the paper's table and its name of the row
PAPER_ROWS = {
    "steps": {
        "step1-full-prompts": "IVLP (MMLoP's ablation)",
        "step2-low-rank": "MMLoP, low rank only",
        "step3-consistency": "MMLoP, low rank, consistency",
        "step4-drift-correction": "MMLoP, low rank, consistency, drift correction",
        "step5-shared-u": "MMLoP",
    },
    "rank": {
        "no-drift-correction": "MMLoP, rank 1",
        "rank2": "MMLoP, rank 2",
        "rank4": "MMLoP, rank 4",
    },
    "length": {
        "ctx2": "MMLoP, 2 tokens",
        "no-drift-correction": "MMLoP, 4 tokens",
        "ctx8": "MMLoP, 8 tokens",
    },
    "depth": {
        "depth7": "MMLoP, depth 7",
        "no-drift-correction": "MMLoP, depth 9",
        "depth11": "MMLoP, depth 11",
    },
    "logits": {
        "one-way-no-drift-correction": "MMLoP, one-way KL",
        "one-way": "MMLoP, one-way KL, drift correction",
        "no-drift-correction": "MMLoP, symmetric KL",
        "step5-shared-u": "MMLoP, symmetric KL, drift correction",
    },
}
PAPER_TABLES = {"steps": 8, "rank": 9, "length": 10, "depth": 11, "logits": 7}


def lay_out(lines: Sequence[Mapping[str, str]]) -> str:
    """Return lines as a Markdown table."""
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def shown(difference: Difference | None) -> str:
    """Return a difference with its interval, in bold where the interval leaves 0 out."""
    if difference is None:
        return "-"
    text = f"{difference.mean:+.1f}"
    if difference.low is not None:
        text += f" ({difference.low:+.1f} to {difference.high:+.1f})"
    return f"**{text}**" if difference.within_noise is False else text


def over_seeds(row: Row, baseline: Row | None, metric: str) -> Difference | None:
    """Return a row's difference from another one of the same data, over the seeds of both."""
    values = [] if baseline is None else seed_differences(row, baseline, metric)
    return paired(values, "seed") if values else None


def of_base_to_new(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return method -> data set, or ``average`` -> row."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.protocol == "base2new":
            name = "average" if row.covered else row.dataset
            found.setdefault(row.method.trainer, {})[name] = row
    return found


def by_h(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Return the methods that have an average, the one with the largest H first."""
    averaged = [method for method in found if "average" in found[method]]
    return sorted(averaged, key=lambda method: -found[method]["average"].mean["H"])


def parameters(row: Row) -> str:
    """Return a row's trained parameters; those of a classifier go by the classes."""
    return "by classes" if row.parameters is None else f"{row.parameters:,}"


def averages_table(rows: Iterable[Row]) -> str:
    """Lay out the averages over the data sets, the method with the largest H first."""
    found = of_base_to_new(rows)
    lines = [
        {"method": method, "trained parameters": parameters(row)}
        | {metric: cell(row, metric) for metric in ("base", "new", "H")}
        for method in by_h(found)
        for row in [found[method]["average"]]
    ]
    return lay_out(lines)


def standing_table(rows: Iterable[Row]) -> str:
    """Lay out the averages over the data sets, with the differences of H from REFERENCES.

    Intervals are 95 % ones over the seeds, of the averages over the data sets.
    """
    found = of_base_to_new(rows)
    lines = []
    for method in by_h(found):
        row = found[method]["average"]
        line = {"method": method, "trained parameters": parameters(row)}
        line |= {metric: cell(row, metric) for metric in ("base", "new", "H")}
        for reference in REFERENCES:
            other = found.get(reference, {}).get("average")
            same = reference == method
            line[f"H - {reference}"] = "" if same else shown(over_seeds(row, other, "H"))
        lines.append(line)
    return lay_out(lines)


def against(rows: Sequence[Row]) -> dict[str, tuple[Difference | None, Difference | None]]:
    """Return method -> H of OURS minus its, with intervals over the seeds and over data sets."""
    found = of_base_to_new(rows)
    result = {}
    for method in by_h(found):
        if method == OURS:
            continue
        one = over_seeds(found[OURS]["average"], found[method]["average"], "H")
        each = [
            over_seeds(found[OURS][data], row, "H").mean
            for data, row in found[method].items()
            if data != "average"
        ]
        result[method] = (one, paired(each, "data set"))
    return result


def against_table(rows: Sequence[Row], data: Sequence[str]) -> str:
    """Lay out H of OURS minus that of every other method, per data set and on average."""
    found, lines = of_base_to_new(rows), []
    for method, (seeds, sets) in against(rows).items():
        line = {f"{OURS} minus": method}
        for name in data:
            if name in found[method]:
                line[name] = shown(over_seeds(found[OURS][name], found[method][name], "H"))
        lines.append(line | {"average, over seeds": shown(seeds), "over data sets": shown(sets)})
    return lay_out(lines)


def separation_table(rows: Iterable[Row], data: Sequence[str], first: str, second: str) -> str:
    """Lay out how far two methods are apart on every data set: first minus second."""
    found = of_base_to_new(rows)
    lines = []
    for name in (*data, "average"):
        one, other = (found.get(method, {}).get(name) for method in (first, second))
        if one is not None and other is not None:
            line = {"data set": name}
            line |= {m: shown(over_seeds(one, other, m)) for m in ("base", "new", "H")}
            lines.append(line)
    return lay_out(lines)


def halves_table(rows: Iterable[Row], data: Sequence[str], methods: Sequence[str] = ()) -> str:
    """Lay out base, new and H per data set and on average, a method per line.

    Args:
        rows: of base-to-new.
        data: the data sets, a column each.
        methods: those to show, in order; by default all, the one with the largest H first.
    """
    found = of_base_to_new(rows)
    lines = []
    for method in methods or by_h(found):
        line = {"method": method, "parameters": parameters(next(iter(found[method].values())))}
        for name in (*data, "average"):
            if (row := found[method].get(name)) is None:
                continue
            values = " / ".join(f"{row.mean[metric]:.1f}" for metric in ("base", "new", "H"))
            spread = f" ± {row.std['H']:.1f}" if len(row.seeds) > 1 else ""
            line[f"{name}: base / new / H"] = values + spread
        lines.append(line)
    return lay_out(lines)


def shots_table(rows: Iterable[Row], dataset: str) -> str:
    """Lay out few-shot accuracies on a data set, a method per line, a column per shots."""
    cells: dict[str, dict[str, str]] = {}
    mine = [row for row in rows if (row.protocol, row.dataset) == ("fewshot", dataset)]
    for row in sorted(mine, key=lambda row: row.method.shots):
        line = cells.setdefault(row.method.trainer, {"method": row.method.trainer})
        line[f"{row.method.shots} shots"] = cell(row, "accuracy")
    columns = dict.fromkeys(key for line in cells.values() for key in line)
    return lay_out([{key: line.get(key, "-") for key in columns} for line in cells.values()])


def shots_against_table(rows: Iterable[Row], dataset: str) -> str:
    """Lay out few-shot accuracies of OURS minus those of every other method, a column per shots."""
    mine = [row for row in rows if (row.protocol, row.dataset) == ("fewshot", dataset)]
    found: dict[str, dict[int | float, Row]] = {}
    for row in sorted(mine, key=lambda row: row.method.shots):
        found.setdefault(row.method.trainer, {})[row.method.shots] = row
    ours = found.pop(OURS)
    lines = [
        {f"{OURS} minus": method}
        | {
            f"{shots} shots": shown(
                over_seeds(row, by_shots.get(shots, by_shots.get(0)), "accuracy")
            )
            for shots, row in ours.items()
        }
        for method, by_shots in found.items()
    ]
    return lay_out(lines)


def transfer_table(rows: Sequence[Row], protocol: str, figures: Iterable[Figure]) -> str:
    """Lay out a transfer: source, targets, and the targets' average with its differences.

    Args:
        rows: of all protocols.
        protocol: cross or dg.
        figures: the published ones; the paper's averages stand in a column of their own.
    """
    paper = {
        figure.trainer: figure.value
        for figure in figures
        if (figure.protocol, figure.dataset) == (protocol, "average") and PAPER in figure.source
    }
    mine = [row for row in rows if row.protocol == protocol]
    found: dict[str, dict[str, Row]] = {}
    for row in mine:
        found.setdefault(row.method.trainer, {})["average" if row.covered else row.dataset] = row
    averaged = [method for method in found if "average" in found[method]]
    lines = []
    for method in sorted(averaged, key=lambda m: -found[m]["average"].mean["accuracy"]):
        rows_of_it = found[method]
        source = rows_of_it["average"].method.source
        names = [source, *(n for n in rows_of_it if n not in (source, "average")), "average"]
        line = {"method": method}
        line |= {
            f"{name} (source)" if name == source else name: cell(rows_of_it.get(name), "accuracy")
            for name in names
        }
        for reference in REFERENCES:
            other = found.get(reference, {}).get("average")
            difference = over_seeds(rows_of_it["average"], other, "accuracy")
            line[f"average - {reference}"] = "" if reference == method else shown(difference)
        if paper:
            line["average in the paper"] = paper.get(method, "-")
        lines.append(line)
    return lay_out(lines)


def paper_shots_table(figures: Iterable[Figure], methods: Sequence[str]) -> str:
    """Lay out the paper's few-shot averages over its data sets, ViT-B/16."""
    lines: dict[str, dict[str, str]] = {}
    for figure in figures:
        key = (figure.protocol, figure.dataset, figure.backbone)
        if key == ("fewshot", "average", "ViT-B/16") and figure.trainer in methods:
            line = lines.setdefault(figure.trainer, {"method": figure.trainer})
            line.setdefault(f"{figure.shots} shots", figure.value)
    columns = ["method", *sorted({c for line in lines.values() for c in line} - {"method"}, key=_n)]
    return lay_out([{c: line.get(c, "-") for c in columns} for line in lines.values()])


def _n(column: str) -> int:
    return int(column.split()[0])


def paper_values(figures: Iterable[Figure], table: str) -> dict[str, dict[str, float]]:
    """Return run of an ablation's table -> metric -> the paper's average in percent."""
    names = {name: run for run, name in PAPER_ROWS[table].items()}
    source = f"table {PAPER_TABLES[table]}"
    values: dict[str, dict[str, float]] = {}
    for figure in figures:
        if figure.protocol == "ablation" and figure.dataset == "average":
            if figure.method in names and figure.source.endswith(source):
                values.setdefault(names[figure.method], {})[figure.metric] = figure.percent
    return values


def ablation_table(
    rows: Sequence[Row], table: str, data: Sequence[str], figures: Iterable[Figure]
) -> str:
    """Lay out an ablation: its runs, and what each changes here and in the paper.

    The first step is compared with nothing, each other one with the step before. In the other
    tables every run is compared with the paper's choice.

    Args:
        rows: of base-to-new, of the runs.
        table: key of PAPER_ROWS.
        data: the data sets.
        figures: the published ones.
    """
    found, paper = of_base_to_new(rows), paper_values(figures, table)
    runs = list(PAPER_ROWS[table])
    default = "no-drift-correction" if table in ("rank", "length", "depth") else "step5-shared-u"
    lines = []
    for i, run in enumerate(runs):
        row = found[run]["average"]
        line = {"run": run, "parameters": parameters(row)}
        for name in (*data, "average"):
            values = " / ".join(f"{found[run][name].mean[m]:.1f}" for m in ("base", "new", "H"))
            line[f"{name}: base / new / H"] = f"{values} ± {found[run][name].std['H']:.1f}"
        line["paper"] = " / ".join(f"{paper[run][m]:.1f}" for m in ("base", "new", "H"))
        other = (runs[i - 1] if i else "") if table == "steps" else default
        if other and other != run:
            here = over_seeds(row, found[other]["average"], "H")
            there = paper[run]["H"] - paper[other]["H"]
            line["change of H"] = shown(here)
            line["in the paper"] = f"{there:+.1f}"
            line["direction"] = agreement(here, there)
        else:
            line |= dict.fromkeys(("change of H", "in the paper", "direction"), "")
        lines.append(line)
    return lay_out(lines)


def agreement(here: Difference | None, there: float) -> str:
    """Say whether a change has the paper's direction."""
    if here is None or here.within_noise is not False:
        return "not told apart"
    return "the same" if here.mean * there > 0 else "the other one"


def save_standing(rows: Sequence[Row], path: Path) -> None:
    """Draw H of OURS minus that of every other method, with both intervals."""
    import matplotlib.pyplot as plt

    from results.plots import looks
    from support.files import replacing

    differences = against(rows)
    methods = list(differences)[::-1]
    look = looks(methods)
    figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.24 * len(methods)), layout="constrained")
    for y, method in enumerate(methods):
        seeds, sets = differences[method]
        colour = look[method].colour
        if sets is not None and sets.low is not None:
            axes.plot([sets.low, sets.high], [y, y], color="#666666", linewidth=1, zorder=2.5)
        if seeds is not None:
            if seeds.low is not None:
                axes.plot([seeds.low, seeds.high], [y, y], color=colour, linewidth=3, zorder=2)
            axes.plot(seeds.mean, y, "o", color=colour, markeredgecolor="black", zorder=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.set_xlabel(f"H of {OURS} minus that of the method (points)")
    axes.margins(y=0.02)
    # the intervals over data sets may leave the picture, those over seeds not
    ends = [e for seeds, _ in differences.values() if seeds for e in (seeds.low, seeds.high)]
    axes.set_xlim(min(ends) - 2, max(ends) + 4)
    axes.set_title(
        f"thick: 95 % over seeds; thin: 95 % over data sets; right of 0: {OURS} is ahead",
        fontsize=8,
    )
    with replacing(str(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)
