"""What settings gain over the length of training, read from results files that sweeps have written."""

import json
import sys

import pytest

from benchmarks import training_length


def result(variant, seed, top1, images, **changes):
    one = {"sweep": f"of_{images}", "variant": variant, "seed": seed, "stage": "supervised", "top1": top1}
    one |= {"loss": 1.0, "train_loss": 1.0, "params": 10, "params_active": 10, "macs": 10, "steps": images // 10}
    return one | {"images": images, "seconds": 1.0, "commit": None} | changes


@pytest.fixture
def files(tmp_path):
    """Two lengths, the longer one first; `sparse` gains 1 and 2 points, with two seeds and with three."""
    for images, gains in ((400, (0.02, 0.01, 0.03)), (100, (0.01, 0.01))):
        lines = []
        for seed, gain in enumerate(gains):
            lines += [result("dense", seed, 0.5, images), result("sparse", seed, 0.5 + gain, images)]
        lines.append(result("wide", 0, 0.6, images))
        (tmp_path / f"{images}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [tmp_path / "400.jsonl", tmp_path / "100.jsonl"]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training_length", *map(str, arguments)])
    training_length.main()


def test_differences_are_those_of_the_sweeps_in_order_of_length(files):
    metric, points = training_length.read(files)
    assert metric == "supervised.top1"
    found = [(p.setting, p.sweep, p.images, round(p.difference.mean, 6), len(p.difference.by_seed)) for p in points]
    assert found == [
        ("sparse", "of_100", 100, 0.01, 2),
        ("sparse", "of_400", 400, 0.02, 3),
        ("wide", "of_100", 100, 0.1, 1),
        ("wide", "of_400", 400, 0.1, 1),
    ]
    low, high = points[1].difference.over_seeds
    assert (low, high) == pytest.approx((0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5), abs=1e-5)
    assert {point.setting for point in training_length.read(files, ["wide"])[1]} == {"wide"}


def test_what_an_evaluation_reads_is_not_trained_on(tmp_path):
    lines = []
    for variant, top1 in (("dense", 0.5), ("sparse", 0.6)):
        lines += [
            result(variant, 0, top1, 400),
            result(variant, 0, top1, 70, stage="evaluate", steps=0, sweep="of_400"),
        ]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metric, points = training_length.read([tmp_path / "both.jsonl"])
    assert metric == "evaluate.top1" and [point.images for point in points] == [400]


def test_rows_of_text_are_called_so(tmp_path, monkeypatch, capsys):
    from tests.helpers.launcher import REPOSITORY

    call(monkeypatch, REPOSITORY / "docs/results/mlm_16_epochs.jsonl", "--plot", tmp_path / "plot.svg")
    out = capsys.readouterr().out
    assert "sequences" in out and "images" not in out and "348,160" in out
    assert "sequences trained on" in (tmp_path / "plot.svg").read_text()


def test_they_are_printed_and_drawn(files, tmp_path, monkeypatch, capsys):
    call(monkeypatch, *files, "--settings", "sparse", "--plot", tmp_path / "plot.svg")
    out = capsys.readouterr().out
    assert "+2.00" in out and "-0.48 .. +4.48" in out and "wide" not in out
    drawn = (tmp_path / "plot.svg").read_text()
    for text in ("sparse over dense, 1e-05 M MACs", "supervised.top1, points", "difference between", "0.0004 M"):
        assert text in drawn


def test_a_pair_is_compared_wherever_a_file_has_both(files, tmp_path):
    lines = []
    for seed in (0, 1):
        lines += [result("small", seed, 0.3, 200), result("dense", seed, 0.5, 200)]
        lines += [result("sparse", seed, 0.54, 200, macs=20), result("sparse_small", seed, 0.31, 200, macs=2)]
    (tmp_path / "200.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [*files, tmp_path / "200.jsonl"]
    _, points = training_length.read(files, ["sparse:dense", "sparse_small:small"])
    found = [(p.setting, p.base, p.macs, p.images, round(p.difference.mean, 6)) for p in points]
    assert found == [
        ("sparse_small", "small", 2, 200, 0.01),
        ("sparse", "dense", 10, 100, 0.01),
        ("sparse", "dense", 10, 400, 0.02),
        ("sparse", "dense", 20, 200, 0.04),  # a larger model of the same name has a line of its own
    ]
    assert len({point.line for point in points}) == 3


def test_one_setting_that_is_not_there_is_not_passed_over(files, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *files, "--settings", "sparse:dense", "spares:dense")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and "--settings spares:dense: no file has spares and dense" in line


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda folder: folder / "none.jsonl", "none.jsonl: No such file"),
        (lambda folder: folder / "text.jsonl", "give those of one metric"),
        (lambda folder: folder / "other.jsonl", "the files compare with dense, other; give"),
        (lambda folder: "--settings=sparse:mixer", "--settings sparse:mixer: no file has sparse and mixer with a same"),
        (lambda folder: f"--plot={folder}/none/plot.svg", "none/plot.svg: its folder is not there; make it"),
        (
            lambda folder: "--settings=mixer",
            "--settings mixer: no file has mixer and its first setting with a same seed",
        ),
    ],
)
def test_bad_input_is_one_line(files, tmp_path, monkeypatch, capsys, wrong, said):
    text = result("dense", 0, None, 100, stage="mlm")
    (tmp_path / "text.jsonl").write_text(json.dumps(text) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps(result("other", 0, 0.5, 100)) + "\n")
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, files[0], wrong(tmp_path))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and said in line


def test_the_committed_files_are_of_the_same_comparison():
    from tests.helpers.launcher import REPOSITORY

    results = REPOSITORY / "docs/results"
    files = [results / f"small_{length}.jsonl" for length in ("short", "models", "long")]
    _, points = training_length.read(files, ["plus"])
    assert [point.images for point in points] == [199680, 798720, 3194880]
