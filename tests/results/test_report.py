"""The report in a browser: it opens alone, sorts, fits, follows the theme, and shows what is there.

Chromium or Chrome of the system is driven by playwright; without one, these tests are skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

import parse_test_res
import train
from results.report.gather import Run
from results.report.page import Page, best_of
from results.rows import Row
from results.runs import Method
from support.command_line import ROOT

from .writing import base2new, few_shot, transfer, write_record

#: names that would do something in a page that took them for more than text
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "{{ 7 * 7 }} {% raw %} ${x} $\\frac{",
    "]]> &lt;b&gt; 🐈‍⬛ 犬",
    "مرحبا \u202eevil\u202c",
    "bell\x07 \x1b[31m",
    "x" * 3000,
)
EPOCH = (
    "epoch [{0}/3] batch [5/5] time 0.109 (0.190) data 0.007 (0.009) loss 1.1850 ({1:.4f}) "
    "acc 50.0000 ({2:.4f}) lr {3:.4e} eta 0:00:18\n"
)
FAILED = "CLIP has no ViT-X/<b>1</b>: name one of the list"


def with_classes(folder: Path, names: tuple[str, ...], right: int) -> None:
    """Give a record classes of 10 images each; of the first ``right`` are right, then 1 more."""
    path = folder / "result.json"
    record = json.loads(path.read_text("utf-8"))
    record["data"]["classes"]["names"] = list(names)
    record["result"]["per_class"] = [
        {
            "label": label,
            "name": name,
            "total": 10,
            "correct": min(10, right + label),
            "accuracy": 10.0 * min(10, right + label),
        }
        for label, name in enumerate(names)
    ]
    path.write_text(json.dumps(record), encoding="utf-8")


def sweep_logs(folder: Path) -> None:
    """Write what a sweep leaves: a call that failed, one that was killed, one that did it again."""
    folder.mkdir()
    (folder / "coop-fewshot-dtd-2-shots-seed-1.txt").write_text(f"...\nerror: {FAILED}\n")
    notes = []
    for name, seconds in (("killed", 0), ("better", -60)):
        log = folder / f"{name}.txt"
        log.write_text("epoch [1/2]\n")
        time = datetime.fromtimestamp(log.stat().st_mtime + seconds).astimezone().isoformat()
        note = {"run": f"the {name} one", "reason": "Killed", "status": 137, "time": time}
        notes.append(json.dumps(note | {"log": str(log)}))
    (folder / "failures.jsonl").write_text("\n".join([*notes, '{"run": 1}', "{"]))


@pytest.fixture(scope="module")
def output(data_root, tmp_path_factory) -> Path:
    """Written runs of all protocols and a real one; some unfinished, damaged, of hostile names."""
    folder = tmp_path_factory.mktemp("output")
    for number, trainer in enumerate(("CoOp", "MMLoP", "ZeroshotCLIP")):
        seeds = {seed: (70.0 + 5 * number + seed, 60.0 - number + seed / 2) for seed in (1, 2, 3)}
        for dataset in ("dtd", "eurosat"):
            base2new(folder, dataset, trainer, seeds, parameters=(2048, 11556, 0)[number])
        transfer(folder, "food101", trainer, {1: 65.0 + number})
    for shots in (1, 4, 16):
        few_shot(folder, "dtd", "CoOp", shots, {1: 50.0 + shots, 2: 51.0 + shots})
        for seed in (1, 2):
            log = folder / f"dtd/CoOp/vit_b16_{shots}shots/seed{seed}/log.txt"
            epochs = (EPOCH.format(e, 3.0 / e, 40.0 + e, 0.1 / e) for e in (1, 2, 3))
            text = log.read_text().replace("Finish training", "".join(epochs) + "Finish training")
            log.write_text(text)
    # one that was killed in its second epoch
    text = (folder / "dtd/CoOp/vit_b16_16shots/seed1/log.txt").read_text()
    killed = folder / "dtd/CoOp/vit_b16_16shots/seed3/log.txt"
    killed.parent.mkdir()
    killed.write_text(text.partition("epoch [3/3]")[0])
    # class names, and a configuration's, that a page must not take for code
    for config, right in (("<i>&'{{7*7}}", 1), ("plain", 4)):
        for seed in (1, 2):
            run = folder / f"ucf101/CoOp/{config}_16shots/seed{seed}"
            write_record(run, 61_000, dataset="ucf101", seed=seed)
            with_classes(run, HOSTILE, right)
    (run / "predictions.safetensors").write_bytes(b"damaged")  # which a long line says
    damaged = folder / "ucf101/CoOp/plain_16shots/seed3"
    write_record(damaged, 61_000, dataset="ucf101", seed=3)
    (damaged / "result.json").write_text('{"schema": 1', encoding="utf-8")
    sweep_logs(folder / "all")

    tail = "testimages/shots_4/MMLoP/tiny/seed1"
    trained, tested = (folder / f"base2new/{part}/{tail}" for part in ("train_base", "test_new"))
    options = ["--trainer", "MMLoP", "--root", str(data_root), "--seed", "1", "--quiet"]
    options += ["--config-file", str(ROOT / "configs/trainers/MMLoP/tiny.yaml")]
    pairs = ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "2"]
    pairs += ["USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0", "DATASET.SUBSAMPLE_CLASSES"]
    assert train.main([*options, "--output-dir", str(trained), *pairs, "base"]) == 0
    options += ["--eval-only", "--model-dir", str(trained)]
    assert train.main([*options, "--output-dir", str(tested), *pairs, "new"]) == 0
    return folder


@pytest.fixture(scope="module")
def report(output, tmp_path_factory) -> Path:
    """The file of the report."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    words = ["--output", str(output), "--html", str(path), "--baseline", "CoOp/vit_b16"]
    assert parse_test_res.main([*words, "--columns", "epochs", "--traceback"]) == 0
    return path


@pytest.fixture(scope="module")
def opened(browser, report):
    """The page on a laptop, with the list of what it asked for and complained about."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page = context.new_page()
    said = []
    context.on("request", lambda request: said.append(f"request {request.url}"))
    page.on("console", lambda message: said.append(f"console {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error {error}"))
    page.goto(report.as_uri())
    yield page, said
    context.close()


@pytest.fixture()
def page(opened):
    """The page as it is when it was just opened."""
    opened[0].reload()
    opened[0].set_viewport_size({"width": 1280, "height": 860})
    opened[0].emulate_media(color_scheme="light")
    return opened[0]


def open_all(page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")


def table(page, caption: str):
    return page.locator("table.sortable", has=page.get_by_text(caption, exact=True)).first


def column(of, number: int) -> list[str]:
    return of.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_it_opens_alone_and_without_complaint(opened, report):
    page, said = opened
    page.wait_for_load_state("networkidle")
    open_all(page)
    assert {line for line in said if line != f"request {report.as_uri()}"} == set()
    assert "http" not in "".join(
        page.evaluate("[...document.querySelectorAll('[src],link[href]')].map(e => e.outerHTML)")
    )


def test_every_protocol_has_its_tables_and_contents_lead_somewhere(page):
    headings = page.locator("main h2").all_inner_texts()
    assert {"Overview", "Missing or failed", "Base-to-new", "Few-shot", "Cross-dataset"} <= {
        *headings
    }
    targets = page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.hash)")
    assert len(targets) > 20
    assert [t for t in targets if page.locator(f'[id="{t[1:]}"]').count() != 1] == []


def test_tables_hold_means_deviations_seeds_and_published_figures(page):
    of = table(page, "Base-to-new, dtd (%)")
    rows = {row.split()[0]: row for row in of.locator("tbody tr").all_inner_texts()}
    assert "72.00 ± 0.82" in rows["CoOp"]
    assert "77.00 ± 0.82" in rows["MMLoP"]
    # figures of the paper's table 1, which the log of this run has the settings of
    assert "published" in rows["CoOp"] and "published" in rows["MMLoP"]
    assert of.locator("td.best", has_text="82.00").count() == 1
    assert of.locator("td.best", has_text="72.00").count() == 0


def test_differences_from_a_baseline_and_further_columns(page):
    of = table(page, "Base-to-new: difference from CoOp/vit_b16 (config vit_b16, 16 shots)")
    # all of it is seen on a laptop, the averages first
    box = of.locator("xpath=..")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    names = [name.split()[0] for name in column(of, 2)]
    averages = names.count("average")
    assert averages and names[:averages] == ["average"] * averages
    assert "\N{MINUS SIGN}" in "".join(of.locator("td.n").all_inner_texts())
    rows = of.locator("tbody tr", has_text="MMLoP").filter(has_text="dtd").all_inner_texts()
    assert "+5.00" in rows[0] and "3 seeds" in rows[0]
    heads = table(page, "Few-shot, 16 shots (accuracy, %)").locator("thead th").all_inner_texts()
    assert "epochs" in heads and "params" in heads


def test_tables_sort_by_click_and_by_key(page):
    of = table(page, "Base-to-new, dtd (%)")
    heading = of.locator("thead th", has_text="base")
    names = column(of, 1)
    assert [name.split()[0] for name in names] == ["CoOp", "MMLoP", "ZeroshotCLIP"]
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert [c.split()[0] for c in column(of, 2)] == ["82.00", "77.00", "72.00"]
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [c.split()[0] for c in column(of, 2)] == ["72.00", "77.00", "82.00"]
    page.keyboard.press("Tab")  # the next heading
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "none"
    assert of.locator("thead th", has_text="new").get_attribute("aria-sort") == "descending"
    assert [c.split()[0] for c in column(of, 3)] == ["61.00", "60.00", "59.00"]


def test_what_has_no_number_stands_last_in_either_order(page):
    of = page.locator("#runs table")
    for _ in range(2):
        of.locator("thead th", has_text="accuracy").get_by_role("button").click()
        values = column(of, 4)
        numbers = [float(value) for value in values if value != "-"]
        assert values[len(numbers) :] == ["-"] * (len(values) - len(numbers)) != []
        assert numbers in (sorted(numbers), sorted(numbers, reverse=True))


def test_figures_are_there_and_say_their_finding_in_numbers(page):
    open_all(page)
    figures = page.locator("figure svg[role=img]")
    assert figures.count() == page.locator("figure").count() > 15
    texts = [figure.get_attribute("aria-label") for figure in figures.all()]
    for text in texts:
        assert len(text) > 40 and any(c.isdigit() for c in text), text
    for what in (
        "New against base accuracy, dtd, by harmonic mean H: ",
        "Accuracy against shots, dtd: CoOp 1 shots 51.50, 4 shots 54.50, 16 shots 66.50",
        "H against trainable parameters",
        "Accuracy per class, ucf101",
        "Training loss by epoch, dtd, from the first to the last epoch: CoOp 3 → 1",
        "Confusion matrix, testimages, base classes",
        "Reliability diagram, testimages, base classes",
    ):
        assert any(text.startswith(what) for text in texts), what
    for box in (figure.bounding_box() for figure in figures.all()):
        assert box["width"] > 150 and box["height"] > 100
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    assert page.locator("svg text", has_text="new accuracy (%)").count() > 0  # words, no outlines


def test_the_table_of_runs_fits_a_laptop(page):
    page.evaluate(  # a folder as long as they become
        """[...document.querySelectorAll('.runs tbody th bdi')].forEach(e => {
             e.textContent = "base2new/train_base/caltech101/shots_16/" + e.textContent })"""
    )
    of = page.locator(".scroll", has=page.locator(".runs")).filter(has_text="protocol")
    assert of.evaluate("box => box.scrollWidth - box.clientWidth") == 0


def test_a_best_of_one_seed_is_told_and_zero_shot_has_no_shots():
    def best(trainer, *values):
        method, numbers = Method(trainer, "tiny", 16), {"accuracy": values[0]}
        row = Row("fewshot", "dtd", method, method, list(range(len(values))), numbers, numbers)
        return best_of("fewshot", [row]).words

    assert best("MMLoP", 70.0).endswith("MMLoP tiny (16 shots); of one seed")
    assert best("MMLoP", 70.0, 72.0).endswith("mean of 2 seeds")
    assert "ZeroshotCLIP tiny (zero-shot)" in best("ZeroshotCLIP", 60.0)


def test_methods_are_counted_once_and_the_best_of_several_is_told(tmp_path, capsys):
    zero_shot = {"config": "tiny", "backbone": "tiny"}
    few_shot(tmp_path, "letters", "ZeroshotCLIP", 4, {1: 66.0}, **zero_shot)
    for shots, accuracy in ((1, 67.0), (4, 71.0)):
        few_shot(tmp_path, "digits", "TipAdapter", shots, {1: accuracy}, config="tiny")
    few_shot(tmp_path, "letters", "MMLoP", 4, {1: 42.0}, config="tiny")
    for name in ("ZeroshotCLIP/tiny/digits", "digits/ZeroshotCLIP/tiny_4shots/seed1"):
        write_record(tmp_path / name, 66_000, "ZeroshotCLIP", "digits", shots=4)
        with_classes(tmp_path / name, ("a", "b", "c"), 1)
    page = tmp_path / "page.html"
    assert parse_test_res.main(["--output", str(tmp_path), "--html", str(page)]) == 0
    text = page.read_text("utf-8")
    assert "<p>3 methods, 2 data sets</p>" in text
    # of the average there is one method only
    assert "accuracy, digits: best is TipAdapter tiny (4 shots); of one seed" in text
    (line,) = (x for x in text.splitlines() if ">images</" in x and "<bdi>class</bdi>" in x)
    assert line.count("ZeroshotCLIP") == 1


def test_a_phone_is_not_scrolled_sideways(page):
    open_all(page)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg')
           && e.getBoundingClientRect().right > innerWidth + 1)
           .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    of = page.locator(".scroll", has=page.get_by_text("Few-shot, 16 shots (accuracy, %)")).first
    assert of.evaluate("box => getComputedStyle(box).overflowX") == "auto"


def colours(page) -> dict[str, str]:
    """Colours of the page, of a figure's words and curves."""
    return page.evaluate(
        """() => {
          const of = (e, name) => getComputedStyle(e)[name];
          const figure = document.querySelector('figure svg');
          const curve = [...figure.querySelectorAll('path')].find(
            path => (path.getAttribute('style') || '').includes('--c332288'));
          return {page: of(document.body, 'backgroundColor'), words: of(document.body, 'color'),
            figure: of(figure.querySelector('text'), 'fill'), curve: of(curve, 'stroke')};
        }"""
    )


def test_dark_follows_the_system_and_the_switch(page):
    light = colours(page)
    page.emulate_media(color_scheme="dark")
    dark = colours(page)
    assert all(light[name] != dark[name] for name in light)
    assert light["figure"] == light["words"] and dark["figure"] == dark["words"]
    switch = page.get_by_role("button", name="Light")
    switch.click()
    assert colours(page) == light
    page.get_by_role("button", name="Dark").press("Enter")
    assert colours(page) == dark


def test_names_from_outside_stay_text(page):
    open_all(page)
    assert page.title().startswith("Results of ")
    assert page.locator("script").count() == 1
    assert page.locator("img, iframe, object, main i i").count() == 0
    words = page.locator("main").inner_text()
    for name in HOSTILE[:4]:
        assert name in words, name
    assert "49 " not in page.locator("#few-shot, #fewshot").inner_text()
    for character in "\u202e\x07\x1b":
        assert character not in words
    assert "<i>&'{{7*7}}" in words
    svg = page.locator("figure svg[aria-label^='Accuracy per class, ucf101']").inner_html()
    assert "&lt;script&gt;" in svg and "<script" not in svg and "<img" not in svg


def test_what_is_missing_or_failed_is_said(page, output):
    words = page.locator("#missing").inner_text()
    assert "dtd/CoOp/vit_b16_16shots/seed3" in words and "in epoch 2 of 3" in words
    assert "ucf101/CoOp/plain_16shots/seed3" in words and "damaged" in words
    assert FAILED in words and "coop fewshot dtd 2 shots seed 1" in words
    assert "the killed one: Killed (status 137)" in words and "the better one" not in words
    assert "1 unfinished" in page.locator("#overview").inner_text()
    name = "base2new/train_base/testimages/shots_4/MMLoP/tiny/seed1"
    run = page.locator("details.run", has=page.locator("summary", has_text=name))
    open_all(page)
    record = json.loads((output / name / "result.json").read_text("utf-8"))
    words = run.inner_text()
    for fact in (record["started"], record["versions"]["torch"], "OPTIM.MAX_EPOCH: 2"):
        assert fact in words
    assert "KEY VALUE" in words  # what gave a setting


def test_tensorboard_shows_the_runs_under_the_same_names(output):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    shown = EventMultiplexer().AddRunsFromDirectory(str(output))
    shown.Reload()
    tail = "testimages/shots_4/MMLoP/tiny/seed1/tensorboard"
    tags = {run: set(found["scalars"]) for run, found in shown.Runs().items()}
    assert tags.keys() == {f"base2new/{part}/{tail}" for part in ("train_base", "test_new")}
    trained, tested = tags[f"base2new/train_base/{tail}"], tags[f"base2new/test_new/{tail}"]
    assert {"train/loss", "train/acc", "train/lr", "test/accuracy"} <= trained
    assert "test/accuracy" in tested and not any(tag.startswith("train/") for tag in tested)
    record = json.loads(
        (output / "base2new/test_new" / tail).parent.joinpath("result.json").read_text()
    )
    (event,) = shown.Scalars(f"base2new/test_new/{tail}", "test/accuracy")
    assert event.value == pytest.approx(record["result"]["metrics"]["accuracy"], abs=1e-3)


def test_a_page_of_runs_that_all_failed_says_so(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 1, {1: 50.0})
    log = tmp_path / "dtd/CoOp/vit_b16_1shots/seed1/log.txt"
    log.write_text(log.read_text().partition("epoch [1/1]")[0])
    path = tmp_path / "report.html"
    assert parse_test_res.main(["--output", str(tmp_path), "--html", str(path)]) == 2
    assert f"wrote {path}" in capsys.readouterr().err
    assert "before its first epoch" in path.read_text("utf-8")


@pytest.mark.parametrize("words", [["--published"], ["--keyword", "error"], ["output"]])
def test_options_that_do_not_go_with_it(words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_test_res.main([*words, "--html", str(tmp_path / "report.html")])
    assert "--html" in capsys.readouterr().err or words == ["--published"]


def test_runs_are_counted_seed_by_seed():
    records = [{"seeds_together": [1, 2]}, {"seeds_together": [1, 2]}, {"seeds_together": None}]
    runs = [Run(Path(f"seed{i}"), f"seed{i}", record=one) for i, one in enumerate([*records, None])]
    page = Page("", "", "", "", [], runs, [], [], [])
    assert page.counted == "4 runs, 2 of them of seeds trained together"
    page.runs = runs[3:]
    assert page.counted == "1 run"
