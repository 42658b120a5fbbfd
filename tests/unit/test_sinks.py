"""Sinks only tell: a full disk, a missing folder or a damaged file costs a warning, and what can be kept is kept."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.log.append_file import AppendFile
from sparse_mlp_ds.log.sinks import JsonlSink, TensorBoardSink, open_sinks

PLAIN = load_recipe("digits", ["log.tensorboard=false"])


def record(step, **figures):
    return {"stage": "train", "step": step, "loss": 1.0 / step, "time": 1000.0 + step} | figures


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB of its own, and a function that fills it wholly."""
    if os.geteuid():
        pytest.skip("mounts a tmpfs, which needs root")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], check=True)

    def fill():
        with pytest.raises(OSError), (mounted / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 512)

    yield mounted, fill
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.parametrize("between", [3, 200])
def test_a_full_disk_loses_no_record_within_the_bound(disk, between):
    folder, fill = disk
    said = []
    file = AppendFile(folder / "records", said.append, waiting=100)
    text = lambda n: f"record {n} ".encode() + b"." * 300 + b"\n"  # noqa: E731
    file.append(text(0))
    fill()
    for number in range(1, between + 20):
        file.append(text(number))
    assert len(said) == 1 and "No space left" in said[0] and "training goes on" in said[0]
    (folder / "filler").unlink()
    file.append(text(between + 20))
    file.close()
    content = (folder / "records").read_bytes()
    numbers = [int(line.split()[1]) for line in content.splitlines()]
    assert all(line.endswith(b"." * 300) for line in content.splitlines()), "a record was cut"
    assert numbers == sorted(set(numbers)) and numbers[0] == 0 and numbers[-1] == between + 20
    missing = between + 21 - len(numbers)
    assert (missing == 0) == (between == 3), "more wait than are kept only in the second case"
    assert said[1:] == [f"{folder}/records: can be written again, " + (
        f"{missing} records were lost in between" if missing else "no record was lost"
    )]  # fmt: skip


def test_what_never_can_be_written_is_counted(tmp_path):
    said = []
    file = AppendFile(tmp_path / "nowhere/records", said.append, waiting=2)
    for _ in range(5):
        file.append(b"x\n")
    file.close()
    assert len(said) == 2 and "5 records were not written" in said[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [JsonlSink, TensorBoardSink])
def test_every_sink_outlives_a_full_disk(disk, capsys, kind):
    folder, fill = disk
    target = folder / ("metrics.jsonl" if kind is JsonlSink else "tensorboard")
    sink = kind(target) if kind is JsonlSink else kind(target, 0)
    sink.write(record(1))
    fill()
    for step in range(2, 500):
        sink.write(record(step))
    (folder / "filler").unlink()
    sink.write(record(500))
    sink.close()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "No space left" in said[0] and "no record was lost" in said[1]
    steps = [one["step"] for one in lines(target)] if kind is JsonlSink else [e.step for e in scalars(target)]
    assert steps == list(range(1, 501))


def scalars(folder: Path, tag="train/loss"):
    """What TensorBoard itself shows of a folder, by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator.Scalars(tag)


@pytest.mark.parametrize("resumed_at", [0, 3])
def test_tensorboard_shows_a_run_that_was_killed_and_resumed_once(tmp_path, resumed_at):
    first = TensorBoardSink(tmp_path, 0)
    for step in range(1, 6):
        first.write(record(step))
    first.close()
    second = TensorBoardSink(tmp_path, resumed_at)
    for step in range(resumed_at + 1, 8):
        second.write(record(step, loss=-1.0))
    second.close()
    shown = scalars(tmp_path)
    assert [event.step for event in shown] == list(range(1, 8)), "each step once, the last record before the stop too"
    assert [event.value < 0 for event in shown] == [step > resumed_at for step in range(1, 8)]


def test_results_of_stages_that_are_not_finished_are_removed(tmp_path):
    results = [{"stage": stage, "step": 2, "result/top1": 0.5} for stage in ("train", "evaluate")]
    content = "".join(f"{json.dumps(one)}\n" for one in (record(1), record(2), *results))
    (tmp_path / "metrics.jsonl").write_text(content)
    for finished, left in ((("train",), 3), ((), 2)):
        for sink in open_sinks(tmp_path, PLAIN, 2, finished):
            sink.close()
        assert lines(tmp_path / "metrics.jsonl") == [record(1), record(2), *results][:left]


def test_damaged_lines_of_metrics_are_removed_aloud(tmp_path, capsys):
    good = [json.dumps(record(step)) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(
        f"{good[0]}\n".encode() + b'{"step": \xff}\n' + f"{good[1]}\n[1]\n{good[2]}\n".encode() + b'{"stage": "tr'
    )
    for sink in open_sinks(tmp_path, PLAIN, 2, ()):
        sink.close()
    assert [one["step"] for one in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "metrics.jsonl: 2 damaged lines were removed" in capsys.readouterr().out


def test_records_of_a_killed_try_that_cannot_be_removed_cost_a_warning(tmp_path, disk, capsys):
    """At a resume, with room for nothing that is as large as metrics.jsonl."""
    folder, fill = disk
    text = "".join(json.dumps(record(step)) + "\n" for step in range(1, 200))
    (folder / "metrics.jsonl").write_text(text)
    fill()
    for sink in open_sinks(folder, PLAIN, 198, ()):
        sink.write(record(199))
        sink.close()
    said = capsys.readouterr().out
    assert "metrics.jsonl: No space left on device; records of later steps stay" in said
    assert (folder / "metrics.jsonl").read_text().startswith(text)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], "a part of a file is left"
