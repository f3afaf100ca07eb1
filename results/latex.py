"""Tables as LaTeX with booktabs: the best of a column bold, the second underlined."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: heading -> the short name that papers have
SHORT = {
    "imagenet": "INet",
    "caltech101": "Calt.",
    "oxford_pets": "Pets",
    "stanford_cars": "Cars",
    "oxford_flowers": "Flow.",
    "food101": "Food",
    "fgvc_aircraft": "Airc.",
    "sun397": "SUN",
    "dtd": "DTD",
    "eurosat": "Euro",
    "ucf101": "UCF",
    "imagenetv2": "INet-V2",
    "imagenet_sketch": "INet-S",
    "imagenet_a": "INet-A",
    "imagenet_r": "INet-R",
}
#: width of the text of an article, and the sizes of letters to try, in points
_TEXT_WIDTH = 345
_SIZES = {"footnotesize": 8.0, "scriptsize": 7.0}
#: points on either side of a column
_GAP = 3
_ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "±": r"$\pm$",
    "−": "$-$",
}
#: a mean, its spread, and what follows: a mark, or how many data sets an average is of
_CELL = re.compile(r"([-+]?\d+(?:\.\d+)?)(?: ± (\d+(?:\.\d+)?))?(.*)")


#: an interval of differences, as tables write it
_INTERVAL = re.compile(r"([-+]\d+(?:\.\d+)?) to ([-+]\d+(?:\.\d+)?)")


def escaped(text: str) -> str:
    """Return a text for LaTeX."""
    return "".join(_ESCAPED.get(character, character) for character in text)


def short_name(heading: str) -> str:
    """Return the short name of a data set or an average, or the heading itself."""
    name, source = heading.removesuffix(" (source)"), heading.endswith(" (source)")
    if name.startswith("average"):
        return "Avg."
    return f"{SHORT[name]} (source)" if source and name in SHORT else SHORT.get(name, heading)


def _places(column: Sequence[str], lower: bool) -> dict[int, int]:
    """Return line -> 1 for the best numbers of a column, 2 for the second ones.

    Averages of fewer data sets than they should be of are not compared; where all are equal, or
    there is one only, nothing is the best.
    """
    numbers = {
        line: float(match[1])
        for line, text in enumerate(column)
        if (match := _CELL.fullmatch(text)) and "(" not in match[3]
    }
    order = sorted(set(numbers.values()), reverse=not lower)
    if len(order) < 2:
        return {}
    # of two, the second is the last
    found = {line: 1 for line, value in numbers.items() if value == order[0]}
    if len(numbers) > 2:
        found |= {line: 2 for line, value in numbers.items() if value == order[1]}
    return found


def _setting(heading: str, value: str) -> str:
    """Return a setting that all lines share, in words: ``config vit_b16``, ``3 seeds``."""
    if heading in ("shots", "seeds"):
        return f"{value} {heading[:-1] if value == '1' else heading}"
    return f"{value} in pairs" if heading == "pairs" else f"{heading} {value}"


def _cell(text: str, place: int, stacked: bool) -> str:
    if text == "-":
        return "--"
    if interval := _INTERVAL.fullmatch(text):
        return f"$[{interval[1]},\\,{interval[2]}]$"
    match = _CELL.fullmatch(text)
    if match is None:
        return escaped(text)
    mean, spread, rest = match.groups()
    if mean[0] in "+-":
        mean = f"${mean}$"
    shown = {1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}.get(place, mean)
    if spread and stacked:
        shown = rf"\shortstack[r]{{{shown}\\{{\tiny $\pm$ {spread}}}}}"
    elif spread:
        shown += rf" $\pm$ {spread}"
    return shown + escaped(rest)


def _width(columns: Sequence[Sequence[str]], size: str, stacked: bool) -> float:
    """Return about how wide a table is, in points."""

    def ems(text: str) -> float:
        """Return the width of a text in units of its letters' size, as in Computer Modern."""
        if stacked and " ± " in text:
            mean, _, spread = text.partition(" ± ")
            return max(ems(mean), ems(spread))
        # bold digits, which the best of a column has
        return sum(
            0.65 if c.isdigit() else 0.33 if c in ".,: ()" else 0.78 if c.isupper() else 0.6
            for c in text
        )

    return sum(_SIZES[size] * max(map(ems, column)) + 2 * _GAP for column in columns)


def latex_table(
    title: str,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    left: int,
    notes: Sequence[str] = (),
    ranked: Sequence[int] = (),
    lower: bool = False,
    settings: Sequence[int] = (),
) -> str:
    """Return a table as wide as the text of one column at most.

    Letters become smaller, then deviations stand below their means, and what is too wide even so is
    scaled.

    Args:
        title: a comment above the table.
        header: headings; data sets get their short names.
        lines: cells.
        left: number of columns that are words.
        notes: comments below the table.
        ranked: columns whose best number is bold and whose second is underlined.
        lower: whether smaller numbers are better.
        settings: columns that are said in the title where all lines have the same there.
    """
    same = [c for c in settings if len(lines) > 1 and len({line[c] for line in lines}) == 1]
    said = ", ".join(_setting(header[c], lines[0][c]) for c in same)
    kept = [c for c in range(len(header)) if c not in same]
    names = [short_name(header[c]) if c in ranked else header[c] for c in kept]
    columns = [[name, *(line[c] for line in lines)] for name, c in zip(names, kept, strict=True)]
    spreads = any(" ± " in cell for line in lines for cell in line)
    ways = [(size, stacked) for stacked in (False, True)[: 1 + spreads] for size in _SIZES]
    fitting = [way for way in ways if _width(columns, *way) <= _TEXT_WIDTH]
    size, stacked = fitting[0] if fitting else ways[-1]
    places = {c: _places([line[c] for line in lines], lower) for c in ranked}
    body = [
        " & ".join(_cell(line[c], places.get(c, {}).get(number, 0), stacked) for c in kept)
        for number, line in enumerate(lines)
    ]
    spec = "".join("l" if c < left else "r" for c in kept)
    scaled = not fitting
    text = [f"% {title}" + (f"; {said}" if said else "")]
    text.append(r"% \usepackage{booktabs" + (",graphicx}" if scaled else "}"))
    text += ["", rf"{{\{size}\setlength{{\tabcolsep}}{{{_GAP}pt}}%"]
    if scaled:
        text.append(r"\resizebox{\linewidth}{!}{%")
    text += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    text += [" & ".join(map(escaped, names)) + r" \\", r"\midrule"]
    text += [rf"{line} \\" + (r"[3pt]" if stacked else "") for line in body]
    text += [r"\bottomrule", r"\end{tabular}" + ("}}" if scaled else "}")]
    text += ["", *(f"% {note}" for note in notes)] if notes else []
    return "\n".join(text) + "\n"
