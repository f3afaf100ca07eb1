"""LaTeX tables: the best bold, the second underlined, as wide as the text at most."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

import parse_test_res
from protocols import ELEVEN
from results.latex import SHORT, escaped, latex_table
from results.published.figures import read_published
from results.published.printed import published_tables

from .writing import base2new, few_shot


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.removesuffix(r" \\").split(" & ")]


def latex(capsys, output, *words: str) -> str:
    assert parse_test_res.main(["--output", str(output), "--format", "latex", *words]) == 0
    return capsys.readouterr().out


def test_best_and_second_of_each_column(tmp_path, capsys):
    for trainer, base, new in (("CoOp", 80.0, 60.0), ("MaPLe", 82.0, 60.0), ("VPT", 79.0, 58.0)):
        base2new(tmp_path, "dtd", trainer, {1: (base - 1, new), 2: (base + 1, new)})
    text = latex(capsys, tmp_path)
    assert "; config vit_b16, 16 shots, 2 seeds\n" in text
    assert row(text, "trainer") == ["trainer", "base", "new", "H"]
    assert row(text, "CoOp")[1:3] == [
        r"\underline{80.00} $\pm$ 1.00",
        r"\textbf{60.00} $\pm$ 0.00",
    ]
    assert row(text, "MaPLe")[1:3] == [r"\textbf{82.00} $\pm$ 1.00", r"\textbf{60.00} $\pm$ 0.00"]
    assert row(text, "VPT")[1:3] == [r"79.00 $\pm$ 1.00", r"\underline{58.00} $\pm$ 0.00"]
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\usepackage{booktabs"):
        assert text.count(part) == 1


def test_differences_have_minus_signs_and_intervals_and_no_constant_columns(tmp_path, capsys):
    for trainer, new in (("CoOp", 60.0), ("VPT", 58.0)):
        seeds = {1: (80.0, new), 2: (81.0, new + 1), 3: (82.0, new - (trainer == "VPT"))}
        base2new(tmp_path, "dtd", trainer, seeds)
    text = latex(capsys, tmp_path, "--baseline", "CoOp")
    title = "difference from CoOp; config vit_b16, 16 shots, data set dtd, 3 seeds in pairs\n"
    _, _, text = text.partition(title)
    assert row(text, "trainer") == ["trainer", "metric", "difference", r"95\% interval", "verdict"]
    (new,) = [line for line in text.splitlines() if line.startswith("VPT & new")]
    assert new == r"VPT & new & $-2.33$ & $[-3.77,\,-0.90]$ & beyond noise \\"
    assert (
        latex_table("t", ["m", "x"], [["a", "-1.50 ± 0.20"], ["b", "-"]], 1).count("$-1.50$") == 1
    )


def test_less_is_better_of_errors_and_averages_that_lack_data_sets_do_not_win():
    lines = [["a", "10.00"], ["b", "20.00"], ["c", "5.00 (3/11)"]]
    for lower, best, second in ((True, "a", "b"), (False, "b", "a")):
        text = latex_table("t", ["m", "x"], lines, 1, ranked=[1], lower=lower)
        assert row(text, best)[1].startswith(r"\textbf{") and r"\textbf" not in row(text, second)[1]
        assert row(text, "c")[1] == "5.00 (3/11)"
    equal = latex_table("t", ["m", "x"], [["a", "1.00"], ["b", "1.00"]], 1, ranked=[1])
    assert r"\textbf" not in equal


def test_names_are_escaped_and_data_sets_short(tmp_path, capsys):
    for trainer, accuracy in (("CoOp", 70.0), ("MMLoP", 72.0)):
        for dataset in ELEVEN:
            few_shot(tmp_path, dataset, trainer, 1, {1: accuracy, 2: accuracy + 1})
    assert row(latex(capsys, tmp_path), "trainer")[1:] == [*(SHORT[d] for d in ELEVEN), "Avg."]
    assert escaped("a_b & 5% <x> ±") == r"a\_b \& 5\% \ensuremath{<}x\ensuremath{>} $\pm$"


def test_tables_compile_and_are_no_wider_than_the_text(tmp_path, capsys):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex: apt-get install texlive-latex-recommended")
    for trainer, accuracy in (("CoOp", 70.0), ("MMLoP", 72.0), ("a_b&c", 71.0)):
        for dataset in ELEVEN:
            few_shot(tmp_path, dataset, trainer, 1, {1: accuracy, 2: accuracy + 1})
            base2new(tmp_path, dataset, trainer, {1: (accuracy, 60.0), 2: (80.0, 61.0)})
    tables = latex(capsys, tmp_path, "--baseline", "CoOp", "--columns", "params,epochs")
    tables += "\n\n" + "\n\n".join(
        table.render("latex") for table in published_tables(read_published())
    )
    assert tables.count(r"\begin{tabular}") > 40
    # each a paragraph of its own; glyphs of notes are comments
    content = re.sub(r"(?m)^\{\\(footnotesize|scriptsize)", r"\n\n\\noindent\g<0>", tables)
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
        f"{content}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    if "booktabs.sty' not found" in done.stdout:
        pytest.skip("needs booktabs: apt-get install texlive-latex-recommended")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout, re.findall(r"Overfull.*", done.stdout)
