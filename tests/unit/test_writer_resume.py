"""A make that ends early, however hard, goes on when the same command is given; a finished one stays as it is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from sparse_mlp_ds import files
from sparse_mlp_ds.data import index
from sparse_mlp_ds.distributed import processes
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import raw_datasets, scan, writer
from sparse_mlp_ds.shards.writer import WORK, Node, Options
from tests.helpers.processes import ended, together
from tests.helpers.tars import picture, refusal, sample, write_tar

REPOSITORY = Path(writer.__file__).parents[2]
CLI = [sys.executable, "-c", "from sparse_mlp_ds.cli.main import main; main()"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def source_of(folder, count=12, size=(8, 8)):
    """An image folder of two classes and its one split."""
    for n in range(count):
        path = folder / f"c{n % 2}" / f"{n:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n, "jpeg", size))
    (split,) = raw_datasets.imagefolder([folder], folder)
    return split


def make(folder, split, workers=0, progress=lambda done, total: None, **options):
    return writer.write(folder, folder.name, split, Options(**{"per_shard": 2} | options), workers, Node(), progress)


def state(folder):
    """Of every file: its inode and time of writing, which tell whether it was written again."""
    return {
        path.relative_to(folder): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_half_way(*arguments, folder):
    """Start a make and kill its first process as soon as a tar is finished, while its workers write others."""
    with subprocess.Popen([*CLI, "shards", "make", *map(str, arguments)], env=ENVIRONMENT) as process:
        while not any((folder / WORK).glob("*.json")):
            assert process.poll() is None
            time.sleep(0.005)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert ended([worker.pid for worker in workers])


def test_a_killed_make_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "made"
    source_of(tmp_path / "in", 40, (1200, 1200))
    options = ("--per-shard", "2", "--resize", "700", "--workers", "2")
    killed_half_way("imagefolder", tmp_path / "in", folder, *options, folder=folder)

    finished = [path.name.removesuffix(".json") for path in (folder / WORK).glob("*.json")]
    tars = sorted(folder.glob("*.tar"))
    assert 0 < len(finished) <= len(tars) < 20
    for path in tars:  # whoever has a tar's name is whole
        assert (len(scan.scan(path)), scan.scan(path).bad_entries) == (2, ())
    assert not (folder / index.FILE_NAME).exists()
    before = state(folder)

    (split,) = raw_datasets.imagefolder([tmp_path / "in"], tmp_path)
    made = make(folder, split, resize=700)
    after = state(folder)
    assert {name: after[Path(name)] for name in finished} == {name: before[Path(name)] for name in finished}
    assert sorted(path.name for path in folder.iterdir() if path.name != ".originals") == [
        "index.json", *(f"made-{n:06d}.tar" for n in range(20)),
    ]  # fmt: skip
    assert len(made) == 40 and all(files.sha256(Path(one.path)) == one.sha256 for one in made.shards)


def test_a_make_whose_worker_is_killed_ends_with_a_line_and_goes_on(tmp_path):
    split, folder = source_of(tmp_path / "in", 60), tmp_path / "made"

    def kill_workers(done, total):
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(processes.command(child)):
                child.kill()

    line = refusal(make, folder, split, 1, kill_workers)
    assert line.startswith(f"{folder}: a process that wrote to it died")
    made = make(folder, split, 1)
    expected = make(tmp_path / "other/made", split)
    assert content(folder) == content(tmp_path / "other/made")
    assert len(made) == len(expected) == 60


@pytest.fixture
def finished(tmp_path):
    """A finished make: its folder and split."""
    split = source_of(tmp_path / "in")
    make(tmp_path / "made", split)
    return tmp_path / "made", split


def test_a_finished_make_does_nothing_again(finished):
    folder, split = finished
    before = state(folder)
    made = make(folder, split)
    assert state(folder) == before
    assert made.record() == index.load(folder).record()


def test_what_a_make_that_was_killed_at_its_very_end_left_is_cleared(finished):
    folder, split = finished
    before = state(folder)
    (folder / WORK).mkdir()
    (folder / WORK / "plan").write_text("any")
    make(folder, split)
    assert state(folder) == before
    assert not (folder / WORK).exists()


def unfinished(folder):
    """Undo a part of a make: its index, and one of its tars."""
    made = index.load(folder)
    (folder / WORK).mkdir()
    (folder / WORK / "plan").write_text(made.plan)
    for one in made.shards:
        (folder / WORK / f"{one.name}.json").write_text(json.dumps(one.record()))
    (folder / index.FILE_NAME).unlink()
    return made


def test_a_tar_that_is_gone_or_of_another_size_is_made_again(finished):
    folder, split = finished
    before = content(folder)
    made = unfinished(folder)
    Path(made.shards[1].path).unlink()
    os.truncate(made.shards[2].path, 1000)
    (folder / WORK / f"{made.shards[3].name}.json").unlink()
    untouched = {
        name: now for name, now in state(folder).items() if name.name in ("made-000000.tar", "made-000004.tar")
    }
    make(folder, split)
    assert content(folder) == before
    assert untouched.items() <= state(folder).items()


def test_partial_files_of_dead_processes_are_removed_and_those_of_others_left(finished):
    folder, split = finished
    made = unfinished(folder)
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = os.uname().nodename
    names = [
        f"x.tar.{here}.{dead.pid}.partial",
        f"x.tar.{here}.{os.getpid()}.partial",
        f"x.tar.elsewhere.{dead.pid}.partial",
    ]
    for name in names:
        (folder / WORK / name).write_text("part")
    Path(made.shards[0].path).unlink()
    seen = []
    make(folder, split, progress=lambda done, total: seen.append({p.name for p in (folder / WORK).glob("x.*")}))
    assert seen[-1] == set(names[1:])


@pytest.mark.parametrize("state_of_it", ["finished", "unfinished"])
@pytest.mark.parametrize(
    "change", [{"per_shard": 3}, {"resize": 4}, {"quality": 50, "resize": 4}, {"seed": 1}, "images", "labels"]
)
def test_other_options_or_images_are_refused(finished, tmp_path, change, state_of_it):
    folder, split = finished
    if state_of_it == "unfinished":
        unfinished(folder)
    before = state(folder)
    if change == "images":
        split, change = source_of(tmp_path / "in", 13), {}
    elif change == "labels":
        (tmp_path / "in/c1").rename(tmp_path / "in/b1")
        (split,) = raw_datasets.imagefolder([tmp_path / "in"], tmp_path)
        change = {}
    line = refusal(make, folder, split, **change)
    assert line.startswith(f"{folder}: holds ") and "of different images or options" in line.replace("made from", "of")
    assert state(folder) == before


def test_tars_of_others_are_never_written_over(finished, tmp_path):
    _, split = finished
    folder = tmp_path / "theirs"
    write_tar(folder / "theirs-000000.tar", *sample("a", 1))
    before = state(folder)
    assert refusal(make, folder, split).startswith(f"{folder}: holds tars already; remove them")
    assert state(folder) == before


def test_an_image_that_is_gone_meanwhile_ends_the_make_with_a_line(finished, tmp_path):
    _, split = finished
    (tmp_path / "in/c0/004.jpg").unlink()
    line = refusal(make, tmp_path / "other", split)
    assert line.startswith(str(tmp_path / "in/c0/004.jpg")) and "give the same command" in line
    Image.new("RGB", (8, 8), (4, 0, 251)).save(tmp_path / "in/c0/004.jpg")
    assert len(make(tmp_path / "other", split)) == 12


def start(folder, split, seconds, barrier):
    barrier.wait()
    time.sleep(seconds)
    try:
        make(folder, split, per_shard=4, resize=500)
    except UserError:
        sys.exit(2)  # the other one was faster and has cleaned up


def test_a_make_that_was_started_twice_leaves_one_sound_set(tmp_path):
    split, folder = source_of(tmp_path / "in", 16, (1000, 1000)), tmp_path / "made"
    assert sorted(together(start, (folder, split, 0), (folder, split, 0.07))) in ([0, 0], [0, 2])
    make(tmp_path / "other/made", split, per_shard=4, resize=500)
    made = {path: found for path, found in content(folder).items() if WORK not in path.parts}
    assert made == content(tmp_path / "other/made")
