"""report.html: what it shows, that no text of a run becomes code, and what the command refuses."""

import base64
import json
import math
import re
import time
from html.parser import HTMLParser

import pytest

from sparse_mlp_ds.cli import main as cli
from sparse_mlp_ds.report import charts, run_files
from sparse_mlp_ds.report.write import write
from sparse_mlp_ds.train.run_report import write_report
from tests.helpers import finished_run

HOSTILE = """</style></title><script>alert('x')</script><img src=x onerror="alert(1)">&amp;"'"""
VOID = {"meta", "link"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = set(), [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def page(*runs, out):
    write(runs, out)
    return Page(out.read_text())


def text_of(found):
    return " ".join(found.texts)


def test_a_page_has_every_part_and_needs_nothing_else(tmp_path):
    found = page(finished_run.write(tmp_path / "run"), out=tmp_path / "report.html")
    text = text_of(found)
    for part in ("Results", "Plan", "Stage finetune", "Experts", "Classes and calibration", "Where time went",
                 "Checkpoints", "Bad samples", "Events", "Provenance"):  # fmt: skip
        assert part in found.texts, part
    assert "cannot be shown" not in text
    for shown in ("Held-out accuracy", "Learning rate", "Model FLOPs utilisation (MFU)", "Confusion matrix: rows",
                  "Calibration: share of right answers", "Worst classes", "backward", "60.0 %", "a.tar: sample 'k'",
                  "Best validation of finetune: top-1 50 % at step 40", "run folder r"):  # fmt: skip
        assert shown in text, shown
    assert "svg" in found.tags and not {"script", "iframe", "object", "embed"} & found.tags
    for name, value in found.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), value


def test_no_text_of_a_run_becomes_code(tmp_path):
    for stage_file in (page(finished_run.write(tmp_path / "a", text=HOSTILE), out=tmp_path / "a.html"),):
        assert "script" not in stage_file.tags
        assert not [name for name, _ in stage_file.attributes if name.startswith("on")]
        assert {value for name, value in stage_file.attributes if name == "src" and "data:" not in value} == set()
        assert text_of(stage_file).count("<script>alert('x')</script>") > 20  # shown as what it is
    runs = [finished_run.write(tmp_path / f"{HOSTILE.replace('/', '')}{n}", text=f"{HOSTILE}{n}") for n in range(2)]
    both = page(*runs, out=tmp_path / "both.html")
    assert "script" not in both.tags and not [name for name, _ in both.attributes if name.startswith("on")]
    assert "<script>" in text_of(both)


def test_a_browser_is_told_to_run_nothing(tmp_path):
    found = page(finished_run.write(tmp_path / "run"), out=tmp_path / "report.html")
    (policy,) = [value for name, value in found.attributes if name == "content" and "default-src" in value]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_no_command_of_a_recipe_is_run(tmp_path):
    marker = tmp_path / "executed"
    run = finished_run.write(tmp_path / "run", text="plain")
    config = (run / "config.yaml").read_text()
    config = config.replace("plain tars", f"pipe:touch {marker}").replace(
        "index: null", f"index: 'pipe:touch {marker}'"
    )
    (run / "config.yaml").write_text(config.replace("allow_commands: false", "allow_commands: true"))
    text = text_of(page(run, out=tmp_path / "report.html"))
    assert "the held-out images are not on this machine's disk" in text and not marker.exists()


def test_routing_pictures_are_shown_as_far_as_there_is_room_and_no_links(tmp_path):
    run = finished_run.write(tmp_path / "run")
    (tmp_path / "private").write_text("secret")
    (run / "routes/finetune/items-4.moe_s.svg").symlink_to(tmp_path / "private")
    (run / "routes/finetune/fields-4.moe_s.svg").write_text("x" * 1_300_000)
    found = page(run, out=tmp_path / "report.html")
    shown = [
        base64.b64decode(value.partition(",")[2]).decode()
        for name, value in found.attributes
        if "svg+xml" in str(value)
    ]
    assert shown == [finished_run.SVG]  # as an image of its own, in which no script runs
    assert "so that the page stays small: routes/finetune/fields-4.moe_s.svg" in text_of(found)
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_the_load_of_experts_is_drawn_where_there_are_no_pictures_of_it(tmp_path):
    run = finished_run.write(tmp_path / "run")
    found = page(run, out=tmp_path / "report.html")
    (shown,) = [
        value for name, value in found.attributes if name == "alt" and value.startswith("finetune, layer 4.moe_c")
    ]
    assert "share of items of each expert" in shown
    (run / "routes/finetune/load-finetune-4.moe_c.svg").write_text(finished_run.SVG)
    assert "Load during training" not in page(run, out=tmp_path / "report.html").texts


def test_worst_classes_are_shown_with_images_where_the_shards_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["shards", "make", "digits", "data/digits"])
    run = finished_run.write(tmp_path / "run", classes=10, val="data/digits/val")
    outcome = json.loads((run / "evaluate.json").read_text())
    outcome["top1_by_class"] = [0.9, 0.1, *[0.5] * 8]
    (run / "evaluate.json").write_text(json.dumps(outcome))
    found = page(run, out=tmp_path / "report.html")
    images = [value for name, value in found.attributes if name == "src" and value.startswith("data:image/jpeg")]
    assert len(images) == 40 and len(set(images)) > 30
    names = [one for one in found.texts if re.fullmatch(r"plain \d", one)]
    first = names.index("plain 1", 20)  # behind the names of the confusion matrix, rows and columns, each twice
    assert names[first : first + 2].count("plain 1") == 1


def test_a_long_curve_keeps_its_spikes_its_gaps_and_its_ends():
    line = [(float(x), 1.0 + (x % 2) * 0.1) for x in range(100_000)]
    line[54_321] = (54_321.0, 99.0)
    line[70_000] = (70_000.0, math.nan)
    kept = charts.thinned(line)
    assert len(kept) <= charts.MOST_POINTS and kept == sorted(kept, key=lambda one: one[0])
    assert (54_321.0, 99.0) in kept and any(math.isnan(y) for _, y in kept)
    assert kept[0] == line[0] and kept[-1] == line[-1]
    assert charts.thinned(line[:400]) == line[:400]


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-5.0, 5.0], [1e-9, 1e9], [math.nan], [5e-324, 1.0], [1e308, -1e308]]
)
def test_any_values_can_be_drawn(values):
    drawn = charts.line_chart("t", [charts.Curve("c", list(enumerate(values)))], "x")
    assert "nan" not in drawn and "inf" not in drawn
    assert bool(drawn) == any(abs(value) < 1e300 for value in values)


def test_a_page_of_10000_records_is_small_and_soon_there(tmp_path):
    run = finished_run.write(tmp_path / "run", records=10_000)
    began = time.process_time()
    size = write([run], tmp_path / "report.html")
    assert time.process_time() - began < 10
    assert size < 3e6


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, [[1, "x"], None], {"stages": 3}, {"name": {"a": [None]}}])
@pytest.mark.parametrize("name", ["summary.json", "environment.json", "events.jsonl", "evaluate.json", "config.yaml"])
def test_a_damaged_file_costs_no_more_than_its_part(tmp_path, name, junk):
    run = finished_run.write(tmp_path / "run")
    sound = run / name
    whole = sound.read_text()
    damaged = [json.dumps(junk), whole[: len(whole) // 2], "\xff\x00" + whole]
    if name.endswith(".json") and isinstance(tree := json.loads(whole), dict):
        damaged += [json.dumps(tree | {key: junk}) for key in tree]
        damaged += [
            json.dumps(tree | {"stages": [{"name": "finetune", "metrics": junk, "phases": junk, "best": junk}]})
        ]
    for content in damaged:
        sound.write_text(content)
        found = page(run, out=tmp_path / "report.html")
        assert {"Stage finetune", "Results", "Checkpoints"} <= set(found.texts)
    page(run, finished_run.write(tmp_path / "sound"), out=tmp_path / "report.html")


def test_records_of_any_content_are_read(tmp_path):
    run = finished_run.write(tmp_path / "run")
    lines = ['{"stage": "finetune", "step": 41, "loss": NaN, "lr": "x", "time": null, "moe/a/items": [1, "b"]}',
             '{"stage": "finetune", "step": true}', "[1]", '"x"', "{", '{"stage": 3, "step": 1}',
             '{"stage": "finetune", "step": 42, "loss": Infinity, "data_wait": 1e308, "moe//x": 1}']  # fmt: skip
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    assert "damaged lines were passed over" in text_of(page(run, out=tmp_path / "report.html"))


def test_runs_are_compared_over_the_same_axes_with_what_differs(tmp_path):
    runs = [
        finished_run.write(tmp_path / "a/run", train__seed=1),
        finished_run.write(tmp_path / "b/run", train__seed=2),
    ]
    found = page(*runs, out=tmp_path / "both.html")
    rows = [one for one in found.texts if one in ("train.seed", "1", "2")]
    assert rows[rows.index("train.seed") :][:3] == ["train.seed", "1", "2"]
    assert "a/run" in found.texts and "b/run" in found.texts  # as much of the path as tells them apart
    drawn = (tmp_path / "both.html").read_text()
    loss = drawn[drawn.index("<figcaption>Loss") :].split("</figure>")[0]
    assert loss.count('class="curve s0"') == 2 and loss.count('class="curve s1"') == 2  # each drawn and in the legend
    assert "moe/" not in text_of(found)


def test_equal_recipes_differ_in_nothing(tmp_path):
    runs = [finished_run.write(tmp_path / name) for name in "ab"]
    assert "Nothing: all recipes are the same." in page(*runs, out=tmp_path / "both.html").texts


def test_the_command_writes_into_the_run_folder_or_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [str(finished_run.write(tmp_path / name)) for name in "ab"]
    cli.main(["report", runs[0]])
    cli.main(["report", *runs])
    cli.main(["report", *runs, "--out", "x.html"])
    for path in ("a/report.html", "comparison.html", "x.html"):
        assert (tmp_path / path).read_text().startswith("<!DOCTYPE html>")
    assert capsys.readouterr().out.splitlines()[0].startswith(f"wrote {runs[0]}/report.html (")


@pytest.mark.parametrize(
    "records, words",
    [(None, "without records of a run"), ("", "holds no records"), ("{}\n[]\n", "holds no records"),
     ('{"stage": "s", "step": 3, "result/top1": 1}\n', "holds no records")],
)  # fmt: skip
def test_a_run_without_records_is_refused_in_one_line(tmp_path, capsys, records, words):
    if records is not None:
        (tmp_path / "metrics.jsonl").write_text(records)
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and words in line and line.startswith("error: ")
    assert not (tmp_path / "report.html").exists()


def test_a_report_ends_in_html(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(finished_run.write(tmp_path / "run")), "--out", str(tmp_path / "x.pdf")])
    assert end.value.code == 2 and "ends in .html" in capsys.readouterr().err


def test_a_run_whose_report_fails_goes_on_with_a_warning(tmp_path, capsys):
    run = finished_run.write(tmp_path / "run")
    (run / "report.html").mkdir()
    write_report(run)
    (line,) = capsys.readouterr().out.splitlines()
    assert "WARNING" in line and "the report is not written" in line
    (run / "report.html").rmdir()
    write_report(run)
    assert (run / "report.html").is_file() and "WARNING" not in capsys.readouterr().out


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps(finished_run.record("train", 1)) + '\n{"stage": "tra')
    found = run_files.read(run)
    assert found.stages == ["train"] and not found.entry("train")
    assert "not finished: 0 of 1 stages done, step 1" in page(run, out=tmp_path / "r.html").texts


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(300, 1, "300"), (120, 2, "120"), (12345, 2, "12000"), (0.0005, 1, "5e-4"), (99999.9, 4, "100k"), (0, 4, "0")],
)
def test_numbers_of_few_digits_are_written_as_people_write_them(value, digits, text):
    assert charts.number(value, digits) == text
