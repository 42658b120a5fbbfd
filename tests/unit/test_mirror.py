"""Copying a run folder to an object store and back: whole checkpoints only, and never one too few."""

import json
import shutil

import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest, mirror_fetch, writer
from sparse_mlp_ds.checkpoints.mirror import Mirror, MirrorError, newest
from sparse_mlp_ds.checkpoints.mirror_sync import MirrorSync
from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.errors import UserError
from tests.helpers.made_checkpoints import call

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "config.yaml").write_text("name: tiny\n")
    (folder / "stop").write_text("")
    (folder / ".running").write_text("")
    return folder


def save(run, step, value=None, keep=2, every=None, **progress):
    """Write a checkpoint of one tensor as a run would, without removing older ones."""
    values = torch.full((6,), float(step if value is None else value))
    recipe = {"name": "tiny", "checkpoint": {"keep": keep, "keep_every": every}}
    pieces = [Piece("param/weight", (6,), 0, values)]
    about = {"progress": {"step": step, "done": []} | progress, "recipe": recipe}
    return writer.save(run / "checkpoints", step, pieces, about).path


def steps(store):
    """Steps of the complete checkpoints in the store."""
    paths = [name.split("/") for name in store.names()]
    return {int(path[1][5:]) for path in paths if path[0] == "checkpoints" and path[-1] == "manifest.json"}


def test_checkpoints_and_the_files_beside_them_arrive_manifests_last(store, run):
    save(run, 2), save(run, 4)
    export = run / "exports/best"
    export.mkdir(parents=True)
    (export / "model.safetensors").write_bytes(b"weights")
    (export / "config.json").write_text("{}")
    assert MirrorSync(run, Mirror(store.url))() == 4
    files = [
        f"checkpoints/step_{step}/{name}" for step in (2, 4) for name in ("manifest.json", "rank_00000.safetensors")
    ]
    exported = ["exports/best/config.json", "exports/best/model.safetensors"]
    assert store.names() == sorted([*files, *exported, "config.yaml", "metrics.jsonl"])
    for name in store.names():
        assert store.content(name) == (run / name).read_bytes()
    put = [path.removeprefix("/training/runs/a/") for method, path in store.requests if method == "PUT"]
    newest_files = [name for name in put if name.startswith("checkpoints/step_4/")]
    assert newest_files == ["checkpoints/step_4/rank_00000.safetensors", "checkpoints/step_4/manifest.json"]
    assert put.index("metrics.jsonl") < put.index("checkpoints/step_4/manifest.json")


def test_only_what_has_changed_is_copied_again(store, run):
    save(run, 2)
    sync = MirrorSync(run, Mirror(store.url))
    sync()
    store.requests.clear()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3}\n')
    sync()
    assert [path for method, path in store.requests if method == "PUT"] == ["/training/runs/a/metrics.jsonl"]
    assert store.content("metrics.jsonl").endswith(b'{"step": 3}\n')


def test_an_upload_that_is_cut_short_is_no_checkpoint_and_is_mended(store, run):
    save(run, 2)
    sync = MirrorSync(run, Mirror(store.url))
    sync()
    save(run, 4)
    store.refused = "PUT */step_4/manifest.json"
    with pytest.raises(MirrorError, match="not you"):
        sync()
    assert steps(store) == {2} and "checkpoints/step_4/rank_00000.safetensors" in store.names()
    assert newest(store.url, run).path.name == "step_2"
    store.refused = ""
    assert MirrorSync(run, Mirror(store.url))() == 4  # another process
    assert steps(store) == {2, 4}


def test_what_the_run_removes_is_removed_but_never_the_last_whole_one(store, run):
    sync = MirrorSync(run, Mirror(store.url))
    save(run, 2, keep=1)
    sync()
    shutil.rmtree(run / "checkpoints/step_2")
    save(run, 4, keep=1)
    store.refused = "PUT */step_4/*"
    with pytest.raises(MirrorError):
        sync()
    assert steps(store) == {2}
    store.refused = ""
    sync()
    assert steps(store) == {4} and not [name for name in store.names() if "step_2" in name]


def test_a_checkpoint_that_the_run_removes_in_mid_upload_arrives_whole(store, run, monkeypatch):
    """Training may be faster than the network; the mirror gets newer checkpoints all the same."""
    path = save(run, 2, keep=1)
    mirror = Mirror(store.url)
    put = mirror.put

    def removed_meanwhile(file, name):
        if path.exists() and "step_2" in name:
            shutil.rmtree(path)
        put(file, name)

    monkeypatch.setattr(mirror, "put", removed_meanwhile)
    assert MirrorSync(run, mirror)() == 2
    assert steps(store) == {2}
    assert [one.name for one in (run / "checkpoints").iterdir()] == []


def test_a_machine_that_fetched_the_newest_leaves_in_the_mirror_what_the_run_keeps(store, run, tmp_path):
    done = [{"name": "first", "last_step": 10}]
    for step in (5, 10, 15, 20, 25, 30):
        save(run, step, every=20, done=done)
    MirrorSync(run, Mirror(store.url))()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    found, damaged = mirror_fetch.fetch(Mirror(store.url), fresh, -1, 2, lambda: pytest.fail("nothing was in the way"))
    assert found.path == fresh / "checkpoints/step_30" and damaged == []
    assert sorted(path.name for path in (fresh / "checkpoints").iterdir()) == ["step_25", "step_30"]
    save(fresh, 35, every=20, done=done)
    shutil.rmtree(fresh / "checkpoints/step_25")
    MirrorSync(fresh, Mirror(store.url))()
    assert steps(store) == {10, 20, 30, 35}


def test_what_is_fetched_is_what_was_copied_and_files_in_the_way_are_kept(store, run, tmp_path):
    save(run, 2), save(run, 4)
    MirrorSync(run, Mirror(store.url))()
    fresh, aside = tmp_path / "fresh", tmp_path / "fresh/previous-1"
    save(fresh, 2)
    (fresh / "metrics.jsonl").write_text("older\n")

    def make():
        aside.mkdir()
        return aside

    found, _ = mirror_fetch.fetch(Mirror(store.url), fresh, 2, 2, make)
    assert found.path.name == "step_4" and manifest.open_checkpoint(found.path).manifest == found.manifest
    assert (aside / "metrics.jsonl").read_text() == "older\n" and len(list(aside.iterdir())) == 1
    assert (fresh / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert not (fresh / "config.yaml").exists() and not (fresh / ".mirror.partial").exists()
    assert mirror_fetch.fetch(Mirror(store.url), fresh, 4, 2, make) == (None, [])  # its own is as new


@pytest.mark.parametrize("fault", ["bytes", "missing", "manifest"])
def test_a_checkpoint_that_is_damaged_there_is_passed_over(store, run, tmp_path, fault):
    save(run, 2), save(run, 4)
    mirror = Mirror(store.url)
    MirrorSync(run, mirror)()
    name = "checkpoints/step_4/" + ("manifest.json" if fault == "manifest" else "rank_00000.safetensors")
    if fault == "missing":
        mirror.remove([name])
    else:
        content = bytearray(store.content(name))
        content[len(content) // 2] ^= 255
        (tmp_path / "other").write_bytes(content)
        mirror.put(tmp_path / "other", name)
    (tmp_path / "fresh").mkdir()
    found, (line,) = mirror_fetch.fetch(mirror, tmp_path / "fresh", -1, 1, lambda: pytest.fail("nothing in the way"))
    assert found.path.name == "step_2" and line.startswith(f"{store.url}/checkpoints/step_4")
    assert [path.name for path in (tmp_path / "fresh/checkpoints").iterdir()] == ["step_2"]


def test_a_run_that_has_gone_back_moves_later_checkpoints_aside_there_too(store, run):
    save(run, 2), save(run, 4)
    MirrorSync(run, Mirror(store.url))()
    old = store.content("checkpoints/step_4/rank_00000.safetensors")
    shutil.rmtree(run / "checkpoints/step_4")
    MirrorSync(run, Mirror(store.url))()
    assert steps(store) == {2}
    assert store.content("previous-1/checkpoints/step_4/rank_00000.safetensors") == old
    save(run, 4, value=7)
    MirrorSync(run, Mirror(store.url))()
    assert steps(store) == {2, 4} and store.content("checkpoints/step_4/rank_00000.safetensors") != old


def test_the_same_step_of_a_different_try_is_kept_beside(store, run):
    path = save(run, 2)
    MirrorSync(run, Mirror(store.url))()
    first = store.content("checkpoints/step_2/rank_00000.safetensors")
    shutil.rmtree(path)
    save(run, 2, value=7)
    MirrorSync(run, Mirror(store.url))()
    assert store.content("checkpoints/step_2/rank_00000.safetensors") != first
    assert store.content("previous-1/checkpoints/step_2/rank_00000.safetensors") == first


@pytest.mark.parametrize(
    "url, message",
    [
        ("s4://bucket/path", r"s4://bucket/path: no driver for this kind of URL \(.*\); install it, for s3://"),
        ("s3://nowhere/path", r"bucket does not exist; correct the URL or its credentials"),
        ("s3://", r"names no place; write it as s3://bucket/path"),
    ],
)
def test_a_wrong_url_is_one_line(store, run, url, message):
    with pytest.raises(UserError, match=message) as caught:
        newest(url, run)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_credentials_are_one_line(store, run, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(run))
    with pytest.raises(UserError, match="Unable to locate credentials.*or set it to null to train without a mirror"):
        newest(store.url, run)


def test_a_folder_of_this_machine_is_a_mirror_too(run, tmp_path):
    save(run, 2)
    url = f"file://{tmp_path}/far/mirror"
    assert newest(url, run) is None
    assert MirrorSync(run, Mirror(url))() == 2
    (tmp_path / "fresh").mkdir()
    found, _ = mirror_fetch.fetch(Mirror(url), tmp_path / "fresh", -1, 1, lambda: pytest.fail("nothing in the way"))
    manifest.open_checkpoint(found.path)
    assert newest(url, run).manifest == json.loads((run / "checkpoints/step_2/manifest.json").read_text())


def test_the_command_uploads_what_is_missing(store, run, tmp_path, capsys):
    save(run, 2)
    code, said, complaints = call(capsys, "checkpoint", "mirror", run)
    assert code == 2 and complaints == [
        f"error: {run}: its recipe has no checkpoint.mirror; give a URL such as s3://bucket/path"
    ]
    (run / "config.yaml").write_text(f"checkpoint: {{mirror: '{store.url}'}}\n")
    assert call(capsys, "checkpoint", "mirror", run) == (
        0,
        f"{store.url} holds step_2 and all that stays of {run}\n",
        [],
    )
    assert steps(store) == {2}
    other = tmp_path / "other"
    values = [Piece("param/weight", (1,), 0, torch.zeros(1))]
    writer.save(other / "checkpoints", 9, values, {"progress": {}, "recipe": {"name": "different"}})
    (other / "config.yaml").write_text("name: different\n")
    code, said, complaints = call(capsys, "checkpoint", "mirror", other, store.url)
    assert code == 2 and complaints == [
        f"error: {store.url}: holds step_2 of a different run; give the URL of this run"
    ]
    assert steps(store) == {2}
