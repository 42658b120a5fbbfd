"""`shards index URL`: an index of tars that lie elsewhere, from which a run reads them."""

import fsspec
import pytest

from sparse_mlp_ds.data import sources
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.shards import remote_index
from sparse_mlp_ds.shards.scan import make_index
from tests.helpers.remote import Server
from tests.helpers.tars import contents, sample, write_tar


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote_index, "_PAUSE", 0.01)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def server(tmp_path):
    for number in range(3):
        members = [part for n in range(4) for part in sample(f"{number}{n}", n % 2)]
        write_tar(tmp_path / f"site/a-{number}.tar", *members, ("._x", b""))
    with Server(tmp_path / "site") as one:
        yield one


def opened(path, index, tmp_path):
    cache = {"folder": str(tmp_path / "cache"), "gigabytes": 1}
    data = Data(train={"path": path, "index": index}, cache=cache)
    (found,) = sources.open_sources(data, data.train)
    return data, found


def test_tars_behind_a_web_server_are_indexed_and_read(server, shards, tmp_path):
    server.answers["a-1.tar"] = ["short", "error"]
    url = f"{server.url}/a-{{0..2}}.tar"
    code, said, complaints = shards("index", url, "--out", "new/index.json")
    assert (code, complaints) == (0, [])
    assert said[0].startswith("passed over 3: hidden (such as") and f"{server.url}/a-" in said[0]
    assert f"{server.url}: 12 images in 3 tars, 2 classes" in said
    assert said[-1] == f'new/index.json: in a recipe, `data.train: {{path: "{url}", index: new/index.json}}`'
    assert server.requests == {"a-0.tar": 1, "a-1.tar": 3, "a-2.tar": 1}
    assert not list((tmp_path / "temporary").iterdir()), "the tars are gone again"
    data, found = opened(url, "new/index.json", tmp_path)
    local = make_index(tmp_path / "site")
    assert [shard.path for shard in found.shards] == [f"{server.url}/{shard.name}" for shard in local.shards]
    assert [vars(a)["sha256"] for a in found.shards] == [b.sha256 for b in local.shards]
    for shard in found.shards:
        assert sources.cache(data).fetch(shard).read_bytes() == (tmp_path / "site" / shard.name).read_bytes()
    assert len(contents(local)) == len(found) == 12


def test_a_folder_that_fsspec_lists_is_indexed(server, shards, tmp_path):
    disk = fsspec.filesystem("memory")
    for path in (tmp_path / "site").glob("*.tar"):
        disk.pipe(f"/bucket/data/{path.name}", path.read_bytes())
    disk.pipe("/bucket/data/notes.txt", b"")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    code, said, _ = shards("index", "memory://bucket/data", "--out", "i.json", "--classes", "names.txt")
    assert code == 0 and said[-2] == "memory://bucket/data: classes ant, bee"
    _, found = opened("memory://bucket/data", "i.json", tmp_path)
    assert len(found) == 12 and found.classes == ["ant", "bee"]
    assert found.shards[0].path == "memory://bucket/data/a-0.tar"


def test_bad_input_is_one_line_and_writes_nothing(server, shards, tmp_path):
    def line(*arguments):
        code, _, (complaint,) = shards("index", *arguments)
        assert code == 2 and not list(tmp_path.glob("*.json"))
        return complaint

    pattern = f"{server.url}/a-{{0..2}}.tar"
    assert "say with --out where the index goes" in line(pattern)
    assert "--out is for tars behind a URL" in line(tmp_path / "site", "--out", "i.json")
    assert "a web server lists no files; name the tars, such as" in line(server.url, "--out", "i.json")
    assert "names tars of different folders" in line(f"{server.url}/{{x,y}}/a.tar", "--out", "i.json")
    assert "a-9.tar: cannot be fetched" in line(f"{server.url}/a-9.tar", "--out", "i.json")
    assert "cannot be listed" in line("unheard://bucket/data", "--out", "i.json")
    assert "--out site: is a folder" in line(pattern, "--out", "site")
    disk = fsspec.filesystem("memory")
    disk.pipe("/empty/readme.txt", b"")
    assert "no .tar files there" in line("memory://empty", "--out", "i.json")
