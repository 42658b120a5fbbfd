"""What a recipe says of its data, opened: folders, patterns, URLs, commands and mixtures; refused in one line."""

import fsspec
import pytest

from sparse_mlp_ds.data import index, sources
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.shards import scan
from tests.helpers.remote import Server
from tests.helpers.tars import contents, refusal, sample, write_tar


def tars_of(folder, names="abc", label=1):
    """Tars NAME.tar of two samples each, indexed."""
    for name in names:
        write_tar(folder / f"{name}.tar", *sample(f"{name}0", label), *sample(f"{name}1", 0))
    return scan.make_index(folder)


@pytest.fixture
def folder(tmp_path):
    tars_of(tmp_path / "data")
    return tmp_path / "data"


def opened(*train, **data):
    data = Data(train=list(train), val="nowhere", **{"classes": 10} | data)
    return sources.open_sources(data, data.train)


def keys(found):
    return [shard.key(n) for shard in found.shards for n in range(len(shard))]


ALL = ["a0", "a1", "b0", "b1", "c0", "c1"]


def test_a_folder_is_all_of_its_tars(folder):
    (found,) = opened(str(folder))
    assert keys(found) == ALL
    assert found.record() == index.load(folder).record()


@pytest.mark.parametrize(
    "pattern, expected",
    [("{a..c}", ALL), ("{c,a}", ["a0", "a1", "c0", "c1"]), ("b", ["b0", "b1"]), ("{b,b}", ["b0", "b1"])],
)
def test_a_pattern_selects_tars_in_the_order_of_the_index(folder, pattern, expected):
    (found,) = opened(f"{folder}/{pattern}.tar")
    assert keys(found) == expected
    assert contents(found) == [one for one in contents(index.load(folder)) if one[0] in expected]


def test_a_tar_whose_name_ends_like_anothers_is_not_taken_for_it(tmp_path):
    tars_of(tmp_path / "some data", ["1", "11", "x1"])
    (found,) = opened(f"{tmp_path}/some data/{{11,x1}}.tar")
    assert keys(found) == ["110", "111", "x10", "x11"]
    assert [shard.path for shard in found.shards] == [f"{tmp_path}/some data/{name}.tar" for name in ("11", "x1")]


def test_tars_in_the_working_folder_need_no_folder_in_their_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (found,) = opened("{a,b}.tar")
    assert keys(found) == ALL[:4]


@pytest.mark.parametrize("path", ["{folder}", "{folder}/{{a..c}}.tar"])
def test_the_index_may_lie_elsewhere(folder, tmp_path, path):
    (folder / index.FILE_NAME).rename(tmp_path / "elsewhere.json")
    (found,) = opened({"path": path.format(folder=folder), "index": str(tmp_path / "elsewhere.json")})
    assert len(contents(found)) == 6


REFUSED = {
    "a name too many": ("{folder}/{{a..d}}.tar", "d.tar' is not among the tars of its index; correct the pattern"),
    "another folder": ("{folder}/x/a.tar", "x/index.json: cannot be read ("),
    "no folder": ("{folder}/x", "no shards here; make them with"),
    "open brace": ("{folder}/{{a..c.tar", "is no pattern (Unbalanced braces"),
    "remote folder": ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x/index.json: cannot be read ("),
    "remote pattern": ("http://127.0.0.1:9/{{a,b}}.tar", "http://127.0.0.1:9/index.json: cannot be read ("),
    "unknown kind": ("nothing://x", "nothing://x/index.json: no driver for this kind of URL"),
}


@pytest.mark.parametrize("path, said", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_opened_is_named(folder, path, said):
    assert said in refusal(opened, path.format(folder=folder))


@pytest.mark.parametrize("path", ["{folder}", "{folder}/{{a,b}}.tar"])
def test_tars_that_changed_since_they_were_indexed_are_refused(folder, path):
    with (folder / "b.tar").open("ab") as file:
        file.write(bytes(10))
    path = path.format(folder=folder)
    assert f"{folder}/b.tar: has 10250 bytes, the index says 10240" in refusal(opened, path)
    (folder / "b.tar").unlink()
    assert f"{folder}/b.tar: is missing" in refusal(opened, path)
    assert keys(opened(f"{folder}/{{a,c}}.tar")[0]) == ["a0", "a1", "c0", "c1"]


@pytest.fixture
def cached(tmp_path):
    return {"cache": {"folder": tmp_path / "cache", "gigabytes": 0.001}}


@pytest.fixture
def url(folder):
    with Server(folder) as server:
        yield server.url


def in_memory(folder):
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe(f"/{path}", path.read_bytes())
    return f"memory://{folder}"


@pytest.mark.parametrize("pattern, expected", [("", ALL), ("/", ALL), ("/{a,c}.tar", ["a0", "a1", "c0", "c1"])])
def test_what_lies_behind_a_url_is_opened_like_a_folder(folder, url, cached, pattern, expected):
    for base in (url, in_memory(folder)):
        (found,) = opened(base + pattern, **cached)
        assert keys(found) == expected
        assert [one.path for one in found.shards] == [f"{base}/{n}.tar" for n in "abc" if f"{n}0" in expected]
        cache = sources.cache(Data(train="x", val="x", classes=1, **cached))
        for one in found.shards:
            assert cache.fetch(one).read_bytes() == (folder / one.name).read_bytes()


def test_remote_tars_need_a_cache(url, cached, tmp_path):
    line = refusal(opened, f"{url}/{{a,b}}.tar")
    assert line == f"data: {url}/a.tar is remote; give data.cache a folder and gigabytes"
    (tmp_path / "cache").write_text("")
    assert f"data.cache.folder {tmp_path / 'cache'}: " in refusal(opened, url, **cached)


@pytest.mark.parametrize("command", ["cat {folder}/{{a,c}}.tar", "sh -c 'cat \"{folder}/{{a,c}}.tar\"' | cat"])
def test_commands_are_opened_where_the_recipe_allows_them(folder, cached, command):
    source = {"path": "pipe:" + command.format(folder=folder), "index": f"{folder}/index.json"}
    (found,) = opened(source, allow_commands=True, **cached)
    assert keys(found) == ["a0", "a1", "c0", "c1"]
    cache = sources.cache(Data(train="x", val="x", classes=1, **cached))
    for one in found.shards:
        assert cache.fetch(one).read_bytes() == (folder / one.name).read_bytes()
    assert "is a command; give its `index:` too" in refusal(opened, source["path"], allow_commands=True, **cached)


def test_the_index_may_come_from_a_command(folder):
    source = {"path": str(folder), "index": f"pipe:cat {folder}/index.json"}
    assert keys(opened(source, allow_commands=True)[0]) == ALL


@pytest.mark.parametrize(
    "path, where",
    [
        ("pipe:touch {mark}; cat {folder}/a.tar", "{folder}/index.json"),
        ("{{pipe:touch {mark} ,pipe:touch {mark} }}/a.tar", "{folder}/index.json"),
        ("{{x,pipe:touch {mark};}}/a.tar", "{folder}/index.json"),
        ("{folder}", "pipe:touch {mark}; cat {folder}/index.json"),
        ("{folder}/{{a,b}}.tar", "pipe:touch {mark}; cat {folder}/index.json"),
    ],
    ids=["plain", "in braces", "second in braces", "index of a folder", "index of a pattern"],
)
def test_no_command_runs_unless_the_recipe_allows_it(folder, tmp_path, cached, path, where):
    names = {"folder": folder, "mark": tmp_path / "ran"}
    line = refusal(opened, {"path": path.format(**names), "index": where.format(**names)}, **cached)
    assert "is a command; set data.allow_commands: true if this recipe may run it" in line
    assert not (tmp_path / "ran").exists()


def test_a_mixture_opens_every_source(folder, url, cached, tmp_path):
    tars_of(tmp_path / "more", "xyz")
    found = opened(str(folder), f"{tmp_path}/more/{{x,z}}.tar", {"path": f"{url}/b.tar"}, **cached)
    assert [keys(one) for one in found] == [ALL, ["x0", "x1", "z0", "z1"], ["b0", "b1"]]
    assert len(index.join(found)) == 12


def test_sources_with_too_many_bad_samples_are_refused(folder, tmp_path):
    assert len(opened(str(folder), classes=2)) == 1
    line = refusal(opened, str(folder), classes=1)
    assert line.startswith("3 of 6 samples are bad, more than data.bad_limit 0.01 allows; worst is ")
    assert "has label 1, outside the 1 classes of data.classes" in line
    assert len(opened(str(folder), classes=1, bad_limit=0.5)) == 1
    write_tar(tmp_path / "bad/a.tar", *sample("a", 1), ("b.png", b""), ("b.cls", b"1"))
    scan.make_index(tmp_path / "bad")
    line = refusal(opened, str(folder), str(tmp_path / "bad"))
    assert line.startswith("1 of 2 samples are bad") and "such as 'b' (empty image)" in line


def test_sources_without_samples_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar")
    index.Index("", ["x"], [scan.scan(tmp_path / "a.tar")]).save(tmp_path)
    assert refusal(opened, str(tmp_path)) == f"{tmp_path}: no samples; remake the shards"


def test_a_local_brace_is_a_folders_name_only_if_it_has_tars(tmp_path):
    tars_of(tmp_path / "a")
    assert "no shards here" in refusal(opened, f"{tmp_path}/{{a,b}}")


def test_weights_are_given_to_all_sources_or_to_none():
    sources = [{"path": "a", "weight": 2.0}, {"path": "b"}]
    with pytest.raises(ValueError, match="give all of them one, or none"):
        Data(train=sources, val="c", classes=2)
    assert [one.weight for one in Data(train=["a", "b"], val="c", classes=2).train] == [None, None]
