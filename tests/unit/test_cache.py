"""The cache of remote tars: whole or absent, checked, fetched once, bounded."""

import multiprocessing
import os
import threading
import time

import fsspec
import pytest

from sparse_mlp_ds.data import cache as caches
from sparse_mlp_ds.data.cache import Cache
from sparse_mlp_ds.data.index import Shard
from sparse_mlp_ds.shards import scan
from tests.helpers import permissions
from tests.helpers.processes import ended, together
from tests.helpers.remote import Server
from tests.helpers.tars import refusal, sample, write_tar

SIZE = 10240
"""Bytes of each tar."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(caches, "_PAUSE", 0.01)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "remote").mkdir()
    with Server(tmp_path / "remote") as one:
        yield one


def remote(server, name, kind="http"):
    """A tar that the server has, as an index over there describes it."""
    path = server.folder / f"{name}.tar"
    if not path.exists():
        write_tar(path, *sample(name, len(name)))
    found = vars(scan.scan(path))
    if kind == "memory":
        fsspec.filesystem("memory").pipe(f"/{path}", path.read_bytes())
    where = {"http": f"{server.url}/{path.name}", "pipe": f"pipe:cat {path}", "memory": f"memory://{path}"}
    return Shard(**found | {"path": where[kind]})


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10 * SIZE)


def held(cache):
    return sorted(path.name.split("-", 1)[1] for path in cache.folder.glob("*.tar"))


def leftovers(cache):
    return [
        path.name for path in cache.folder.iterdir() if path.suffix not in (".tar", ".lock") and path.name != ".lock"
    ]


@pytest.mark.parametrize("kind", ["http", "pipe", "memory"])
def test_a_remote_tar_is_fetched_whole(server, cache, kind):
    shard = remote(server, "a", kind)
    path = cache.fetch(shard)
    assert path.parent == cache.folder
    assert path.read_bytes() == (server.folder / "a.tar").read_bytes()
    assert leftovers(cache) == []
    (server.folder / "a.tar").write_bytes(b"gone")
    fsspec.filesystem("memory").rm("/", recursive=True) if kind == "memory" else None
    assert cache.fetch(shard) == path  # it is not asked for again
    assert server.requests["a.tar"] == (1 if kind == "http" else 0)


def test_tars_of_the_same_name_elsewhere_are_others(server, cache, tmp_path):
    (server.folder / "b").mkdir()
    write_tar(server.folder / "b/a.tar", *sample("other", 9))
    here = remote(server, "a")
    there = Shard(**vars(scan.scan(server.folder / "b/a.tar")) | {"path": f"{server.url}/b/a.tar"})
    assert cache.fetch(here).read_bytes() != cache.fetch(there).read_bytes()
    changed = Shard(**vars(here) | {"sha256": there.sha256})  # the same place, indexed anew
    (server.folder / "a.tar").write_bytes((server.folder / "b/a.tar").read_bytes())
    assert cache.fetch(changed).read_bytes() == cache.fetch(there).read_bytes()


def test_what_was_not_used_for_longest_makes_room(server, cache):
    cache.limit = 2 * SIZE + 100
    a, b, c = (remote(server, name) for name in "abc")
    old = [cache.fetch(one) for one in (a, b)]
    for age, path in enumerate(old):
        os.utime(path, (1000 + age, 1000 + age))
    cache.fetch(a)  # now b is the one
    with open(cache.fetch(b), "rb") as reader:
        os.utime(old[1], (1000, 1000))
        cache.fetch(c)
        assert held(cache) == ["a.tar", "c.tar"]
        assert reader.read() == (server.folder / "b.tar").read_bytes()  # open, it is still there
    cache.fetch(b)
    assert server.requests == {"a.tar": 1, "b.tar": 2, "c.tar": 1}


def test_the_cache_never_holds_more_than_its_limit(server, cache):
    cache.limit = 3 * SIZE
    for name in [*"abcdefg", "a", "b", "h"]:
        cache.fetch(remote(server, name))
        sizes = [path.stat().st_size for path in cache.folder.iterdir()]
        assert sum(sizes) <= cache.limit
    assert len(held(cache)) == 3


def test_a_tar_that_is_larger_than_the_cache_is_refused(server, cache):
    cache.limit = SIZE - 1
    assert "10240 bytes exceed data.cache.gigabytes; raise it" in refusal(cache.fetch, remote(server, "a"))
    assert server.requests == {}


def test_partial_files_count_while_they_are_fresh_and_go_when_they_are_not(server, cache):
    cache.limit = 3 * SIZE
    for name in "ab":
        cache.fetch(remote(server, name))
    fresh, stale = cache.folder / ".1.host.1.partial", cache.folder / ".2.host.2.partial"
    for path in (fresh, stale):
        path.write_bytes(bytes(SIZE))
    os.utime(stale, (1000, 1000))
    cache.fetch(remote(server, "c"))
    assert fresh.exists() and not stale.exists()
    assert len(held(cache)) == 2


def test_a_tar_has_its_name_only_when_it_is_whole(server, cache):
    shard = remote(server, "a")
    server.answers["a.tar"] = ["slow"]
    found = []
    thread = threading.Thread(target=lambda: found.append(cache.fetch(shard)))
    thread.start()
    while not cache.folder.exists() or not leftovers(cache):
        time.sleep(0.005)
    assert held(cache) == []
    server.release.set()
    thread.join(60)
    assert found[0].read_bytes() == (server.folder / "a.tar").read_bytes()
    assert (held(cache), leftovers(cache)) == (["a.tar"], [])


WRONG = {
    "short": "cannot be fetched after 4 tries (1000 bytes came, which differ from the 10240",
    "other": "(10240 bytes came, which differ from the 10240 that the index describes)",
    "longer": "(more came than the 10240 bytes that the index describes)",
    "error": "(HTTP Error 503: Service Unavailable)",
    "chunks cut": "(IncompleteRead: IncompleteRead(",
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_answer_is_asked_for_again(server, cache, how):
    shard = remote(server, "a")
    server.answers["a.tar"] = [how, how]
    assert cache.fetch(shard).read_bytes() == (server.folder / "a.tar").read_bytes()
    assert server.requests["a.tar"] == 3


@pytest.mark.parametrize("how, said", WRONG.items())
def test_wrong_answers_are_refused_in_the_end(server, cache, how, said):
    shard = remote(server, "a")
    server.answers["a.tar"] = [how] * 4
    line = refusal(cache.fetch, shard)
    assert line.startswith(f"{shard.path}: ") and said in line
    assert server.requests["a.tar"] == 4
    assert held(cache) == leftovers(cache) == []
    assert cache.fetch(shard).exists()  # nothing hinders the next one


@pytest.mark.parametrize(
    "path, said",
    [
        ("{url}/nowhere.tar", "(HTTP Error 404: Not Found)"),
        ("http://127.0.0.1:9/a.tar", "Connection refused"),
        ("http://127.0.0.1:port/a.tar", "nonnumeric port"),
        ("memory://nowhere.tar", "cannot be fetched after 4 tries ("),
        ("nothing://a.tar", "no driver for this kind of URL ("),
        ("pipe:cat nowhere.tar", "the command ended with status 1: cat: nowhere.tar: No such file or directory"),
        ("pipe:cat {file}; exit 3", "the command ended with status 3)"),  # though every byte came
        ("pipe:head -c 99 {file}", "99 bytes came"),
    ],
)
def test_what_cannot_be_fetched_is_named(server, cache, path, said):
    shard = remote(server, "a")
    path = path.format(url=server.url, file=server.folder / "a.tar")
    line = refusal(cache.fetch, Shard(**vars(shard) | {"path": path}))
    assert line.startswith(f"{path}: ") and said in line
    assert held(cache) == leftovers(cache) == []


def test_a_command_may_complain_at_length(server, cache):
    shard = remote(server, "a", "pipe")
    noisy = f"pipe:head -c 1000000 /dev/zero >&2; {shard.path[5:]}"
    assert cache.fetch(Shard(**vars(shard) | {"path": noisy})).stat().st_size == SIZE


def test_an_endless_command_is_ended_with_all_that_it_started(server, cache, tmp_path):
    shard = remote(server, "a", "pipe")
    endless = f"pipe:echo $$ >> {tmp_path}/pids; sleep 1000 & echo $! >> {tmp_path}/pids; yes"
    line = refusal(cache.fetch, Shard(**vars(shard) | {"path": endless}))
    assert "more came than the 10240 bytes" in line
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 8
    assert ended(pids)


def read(cache, shard, content, times, barrier):
    barrier.wait()
    for _ in range(times):
        with cache.open(shard) as file:
            assert file.read() == content


def test_processes_that_need_the_same_tar_fetch_it_once(server, cache):
    shard = remote(server, "a")
    assert together(read, *[(cache, shard, (server.folder / "a.tar").read_bytes(), 1)] * 4) == [0] * 4
    assert server.requests["a.tar"] == 1


def test_processes_that_need_other_tars_do_not_disturb_one_another(server, cache):
    cache.limit = 3 * SIZE
    readers = [(cache, remote(server, name), (server.folder / f"{name}.tar").read_bytes(), 20) for name in "abcdefgh"]
    assert together(read, *readers) == [0] * 8
    assert leftovers(cache) == []


def test_a_tar_that_another_process_removes_before_it_is_open_is_fetched_again(server, cache, monkeypatch):
    shard, fetch = remote(server, "a"), cache.fetch
    removed = []

    def fetch_and_lose(one):
        path = fetch(one)
        if len(removed) < 2:
            removed.append(path.unlink())
        return path

    monkeypatch.setattr(cache, "fetch", fetch_and_lose)
    with cache.open(shard) as file:
        assert file.read() == (server.folder / "a.tar").read_bytes()
    assert server.requests["a.tar"] == 3


def test_a_killed_process_leaves_nothing_that_hinders_others(server, cache):
    shard = remote(server, "a")
    server.answers["a.tar"] = ["slow"]
    fork = multiprocessing.get_context("fork")
    victim = fork.Process(target=cache.fetch, args=(shard,))
    victim.start()
    while not server.requests["a.tar"]:
        time.sleep(0.005)
    victim.kill()
    victim.join()
    assert held(cache) == []
    assert cache.fetch(shard).read_bytes() == (server.folder / "a.tar").read_bytes()


def test_a_folder_that_cannot_hold_the_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert f"data.cache.folder {tmp_path / 'file/x'}: " in refusal(caches.check_space, tmp_path / "file/x", 1)
    assert "GB are free, the cache may need 1000000" in refusal(caches.check_space, tmp_path, 10**15)
    caches.check_space(tmp_path / "new", 1000)
    assert not (tmp_path / "new").exists(), "it is made when it is needed"
    with permissions.bound():
        (tmp_path / "closed").mkdir(mode=0o555)
        assert "closed: Permission denied" in refusal(caches.check_space, tmp_path / "closed", 1)
