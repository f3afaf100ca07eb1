"""Results of runs: mean and spread over seeds, base, new and their harmonic mean H.

Without a directory, everything below ``output/`` (or ``$OUTPUT``, which the scripts write to as
well) becomes the papers' tables: base-to-new, few-shot, cross-dataset and domain generalisation;
docs/results.md explains them. With a directory, upstream's behaviour: the mean over the runs in it.

    python parse_test_res.py
    python parse_test_res.py --format latex
    python parse_test_res.py --compare
    python parse_test_res.py --baseline CoOp --columns params,seconds,memory,selection,epochs
    python parse_test_res.py --published
    python parse_test_res.py --plot figures
    python parse_test_res.py --html report.html
    python parse_test_res.py output/base2new/test_new/digits/shots_16/CoOp/tiny --test-log

A run is read from its record, ``result.json``, which it writes when it ends; averages are of the
unrounded values in there. Runs that differ in settings or data from those they would be averaged
with are left out, and what differs is named, with the seeds, on the standard error output. So is a
seed that a row lacks and others of its table have, and every run that does not count.

Runs without a record, of upstream's code or of older versions, are read from their logs. A log
counts when it shows a result after the end of the training (both ``Finish training`` and ``Finished
training`` mark it), or, in a log of a test, after ``=> result``. Where a run was started several
times, in one log or in several, its last start counts: results from before it may be of other
weights.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from results.agreement import description, description_across_data_sets, leave_out
from results.columns import COLUMNS, columns_of
from results.logs import BadLog, logs_below, metrics_below
from results.record import RunResult, in_unit, metrics_in, read_result
from results.rows import make_rows, spread
from results.runs import collect, layout_root
from results.tables import print_rows
from support.command_line import add_traceback, output_file, run
from support.hints import nearest

#: options without a directory
OF_TABLES = ("format", "output", "compare", "baseline", "columns", "plot", "html")


def note(line: str) -> None:
    """Print a line about what is left out or missing."""
    print(line, file=sys.stderr)


# --- one directory, as upstream -------------------------------------------------------------------


class Summary(NamedTuple):
    """The mean over the runs of a directory, their names, and whether all of them have a record."""

    mean: float
    names: list[str]
    exact: bool


def summarize(directory: Path, args: argparse.Namespace) -> Summary | None:
    """Print the mean over the runs of a directory.

    Args:
        directory: its sub-folders are runs, of one setting or of one per data set.
        args: the parsed command line.

    Returns:
        The mean in percent; None when no run counts.
    """
    print(f"Parsing files in {directory}")
    results: dict[str, RunResult] = {}
    runs: dict[tuple[str, int], str] = {}
    for folder in visible_folders(directory):
        try:
            result = read_result(folder, args.keyword, args.test_log)
        except BadLog as reason:
            note(f"skipped: {reason}")
            continue
        if result.record is not None and result.record["seed"] is not None:
            run = result.record["data"]["name"], result.record["seed"]
            if (first := runs.setdefault(run, folder.name)) != folder.name:
                note(f"left out: {folder}: it has seed {run[1]}, as {first} has")
                continue
        results[folder.name] = result
    data_sets = {result.facts.get("DATASET.NAME") for result in results.values()}
    if len(data_sets) == len(results):
        described = {name: description_across_data_sets(result) for name, result in results.items()}
    else:
        described = {name: description(result, seed=name) for name, result in results.items()}
    names = leave_out(results, described, str(directory), ", ".join, note)
    kept = [results[name] for name in names]
    shown = partial(in_unit, metric=args.keyword)
    for result in kept:
        print(f"file: {result.source}. {args.keyword}: {shown(result.value)}. ")
    if not kept:
        return None
    values = [result.value for result in kept]
    mean = fmean(values)
    print("===")
    print(f"Summary of directory: {directory}")
    print(f"* {args.keyword}: {shown(mean)} +- {shown(spread(values, args.ci95))}")
    print("===")
    if any(result.chosen_on_test for result in kept):
        note(f"{directory}: the test images chose the epoch (TEST.FINAL_MODEL best_test)")
    return Summary(mean, names, all(result.record is not None for result in kept))


def visible_folders(directory: Path) -> list[Path]:
    """Return the sub-folders of a directory in the order of their names."""
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))


def parse_directory(args: argparse.Namespace) -> None:
    """Do what upstream's script does with a directory.

    Raises:
        FileNotFoundError: when the directory does not exist or no run in it counts.
    """
    directory = Path(args.directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}")
    experiments = visible_folders(directory) if args.multi_exp else [directory]
    summaries = {e: found for e in experiments if (found := summarize(e, args)) is not None}
    if not summaries:
        flag = "" if args.test_log else "; --test-log reads the logs of tests"
        hint = keyword_hint(directory, args.keyword) or level_hint(directory, args.multi_exp)
        raise FileNotFoundError(f"Nothing found in {directory}{hint or flag}")
    if args.multi_exp:
        every = {name for summary in summaries.values() for name in summary.names}
        for experiment, summary in summaries.items():
            if summary.exact and (lacking := sorted(every.difference(summary.names))):
                note(f"missing: {experiment} has no {', '.join(lacking)}, which others have")
        mean = fmean(summary.mean for summary in summaries.values())
        print(f"Average performance\n* {args.keyword}: {in_unit(mean, args.keyword)}")


def keyword_hint(folder: Path, keyword: str) -> str:
    """Return what to say where the runs below a folder have other metrics; else nothing."""
    names = sorted({*metrics_below(folder), *metrics_in(folder)})
    if not names or keyword in names:
        return ""
    return f": no log has {keyword}{nearest(keyword, names)} (they have {', '.join(names)})"


def level_hint(directory: Path, multi_exp: bool) -> str:
    """Return what to say where the runs lie at another level than that of ``directory``'s folders.

    Args:
        directory: that was named.
        multi_exp: whether its folders were taken for folders of runs.
    """
    directory = directory.absolute()
    for inside in (directory, directory.parent):
        if any(inside.glob("log.txt*")):
            return (
                f": it is {'' if inside == directory else 'in '}a run folder; name the folder of "
                f"runs above, {inside.parent}"
            )
    experiments = sorted({log.parent.parent for log in logs_below(directory)})
    looked_at = [e.parent if multi_exp else e for e in experiments]
    if not experiments or directory in looked_at:
        return ""
    shown = ", ".join(str(experiment) for experiment in experiments[:3])
    more = f" or {len(experiments) - 3} more" if len(experiments) > 3 else ""
    option = ""
    if all(experiment.parent == directory for experiment in experiments):
        option = "; --multi-exp takes all of them"
    return f": it is above the folders of runs; name one, such as {shown}{more}{option}"


# --- everything below output/ as tables -----------------------------------------------------------


def default_output() -> str:
    """Return the folder that the scripts write to: $OUTPUT, or output/ beside this file."""
    return os.environ.get("OUTPUT") or os.path.relpath(Path(__file__).parent / "output")


def table_style(args: argparse.Namespace) -> str:
    """Return the style of the tables that --format asks for."""
    return "github" if args.format in (None, "markdown") else args.format


def parse_output(args: argparse.Namespace) -> None:
    """Print everything below the output folder.

    Raises:
        FileNotFoundError: when there is no finished result.
        ValueError: for a column or a baseline that there is not.
    """
    columns = columns_of(args.columns) if args.columns is not None else []
    output = Path(args.output)
    if not output.is_dir():
        raise FileNotFoundError(f"no directory {output}: run something first, or pass --output")

    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        note(line)

    rows = make_rows(collect(output, args.keyword, tell), args.ci95, tell)
    differences = None
    if args.baseline and rows:
        from results.differences import Baseline

        differences = Baseline(args.baseline, rows).differences(rows, tell)
    if args.html and (rows or said):
        from results.report.page import write_report

        write_report(args.html, output, rows, said, args.ci95, columns, differences)
        note(f"wrote {args.html}")
    if not rows:
        raise FileNotFoundError(f"Nothing found in {output}{output_hint(output, args.keyword)}")
    style = table_style(args)
    if args.plot:
        from results.plots import save_plots

        save_plots(rows, Path(args.plot), note)
    if args.compare:
        from results.published.comparison import print_comparison

        print_comparison(rows, style, args.ci95)
    else:
        print_rows(rows, style, args.keyword, columns, differences)


def show_published(args: argparse.Namespace) -> None:
    """Print the published tables, without a run of ours."""
    from results.published.printed import print_published

    print_published(table_style(args))


def output_hint(output: Path, keyword: str) -> str:
    """Return what to say where the runs have other metrics, or their layout starts elsewhere."""
    if hint := keyword_hint(output, keyword):
        return hint
    output = output.absolute()
    found = (layout_root(log.parent) for log in logs_below(output))
    roots = {root for root in found if root is not None and root != output}
    return f": its runs are in the layout below {min(roots)}; name that (--output)" if roots else ""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Mean results of runs over seeds.")
    add = parser.add_argument
    add("directory", nargs="?", help="folder of runs; without it, tables of all in --output")
    add("--output", metavar="DIR", help="folder for the tables (default: $OUTPUT, else output)")
    add(
        "--format",
        choices=["github", "markdown", "latex", "csv", "json"],
        help="of the tables (default: github, which is markdown)",
    )
    add("--compare", action="store_true", help="our results beside the published ones")
    add("--published", action="store_true", help="the published tables, without results of ours")
    add(
        "--baseline",
        metavar="METHOD",
        help="also the differences from this method (CoOp, or CoOp/vit_b16), seed by seed",
    )
    add("--columns", metavar="LIST", help=f"further columns, among {','.join(COLUMNS)}")
    add("--plot", metavar="DIR", help="also draw the usual figures, as PNG and PDF, in this folder")
    add(
        "--html",
        metavar="FILE",
        type=output_file,
        help="also write one page with tables, figures, and all about the runs",
    )
    add("--ci95", action="store_true", help="95%% confidence intervals, not standard deviations")
    helped = "metric: accuracy, error, macro_f1, average, top5, nll, ece, adaptive_ece"
    add("--keyword", default="accuracy", help=helped)
    add("--test-log", action="store_true", help="the directory holds logs of tests only")
    add("--multi-exp", action="store_true", help="the directory holds several experiments")
    add_traceback(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: 0, 2 when nothing was found, or that of :func:`support.command_line.run`.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.published:
        others = [args.directory, args.output, args.compare, args.plot, args.ci95]
        others += [
            args.baseline,
            args.columns,
            args.html,
            args.test_log,
            args.multi_exp,
            args.keyword != "accuracy",
        ]
        if any(others):
            parser.error("--published takes no directory and no option but --format")
    elif args.directory is None:
        if args.test_log or args.multi_exp:
            parser.error("--test-log and --multi-exp need a directory")
        if args.keyword != "accuracy" and (args.compare or args.plot or args.html):
            parser.error("--compare, --plot and --html are for --keyword accuracy")
        if args.compare and (args.baseline or args.columns is not None):
            parser.error("--baseline and --columns are for tables of our results: no --compare")
        args.output = args.output or default_output()
    elif any(getattr(args, name) for name in OF_TABLES):
        named = ", ".join(f"--{name}" for name in OF_TABLES)
        parser.error(f"{named} are for the tables: leave out the directory")
    if args.published:
        action = show_published
    else:
        action = parse_output if args.directory is None else parse_directory
    return run(lambda: action(args), args.traceback)


if __name__ == "__main__":
    sys.exit(main())
