"""The index of a folder of tars: made, saved, read again, compared with the tars, refused in a line when damaged."""

import json
import os

import numpy as np
import pytest

from sparse_mlp_ds.data import index
from sparse_mlp_ds.data.index import BadEntry, Index
from sparse_mlp_ds.shards import scan, summary, verify
from tests.helpers.tars import contents, picture, refusal, sample, write_tar

GOOD = [*sample("a", 1), *sample("b", 0)]


@pytest.fixture
def folder(tmp_path):
    """One indexed tar a.tar with the samples a and b."""
    write_tar(tmp_path / "a.tar", *GOOD)
    scan.make_index(tmp_path)
    return tmp_path


def test_tars_of_others_are_indexed_in_the_order_of_their_names(tmp_path):
    write_tar(tmp_path / "b.tar", *sample("x/1", 2), *sample("x/2", 0, "PNG"))
    write_tar(tmp_path / "a.tar", *reversed(sample("n01/c", 1)), *sample("n.01/d", 2))
    made = scan.make_index(tmp_path)
    assert [(s.name, [s.key(0), s.key(1)], s.labels.tolist()) for s in made.shards] == [
        ("a.tar", ["n01/c", "n.01/d"], [1, 2]), ("b.tar", ["x/1", "x/2"], [2, 0]),
    ]  # fmt: skip
    assert made.classes == ["0", "1", "2"]
    assert (made.source, len(made)) == (str(tmp_path), 4)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    write_tar(tmp_path / "a.tar", *sample("ключ", 9_999_999), ("x.png", picture()))
    write_tar(tmp_path / "empty.tar")
    shards = [scan.scan(tmp_path / name) for name in ("a.tar", "empty.tar")]
    made = Index(str(tmp_path), ["zebra, striped", "日本"], shards, plan="abc")
    made.save(tmp_path)
    loaded = index.load(tmp_path)
    assert loaded.record() == made.record() == json.loads((tmp_path / index.FILE_NAME).read_text())
    assert (loaded.plan, loaded.classes, loaded.source) == ("abc", ["zebra, striped", "日本"], str(tmp_path))
    assert loaded.shards[0].key(0) == "ключ"
    assert loaded.shards[0].bad_entries == (
        BadEntry("x", 4096, "needs one image and one .cls side by side, has x.png"),
    )
    assert [(s.offsets.dtype, s.sizes.dtype, s.labels.dtype) for s in loaded.shards] == [
        (np.int64, np.int64, np.int32)
    ] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "empty.tar", index.FILE_NAME]
    assert contents(loaded) == contents(made)


def test_the_record_holds_totals(folder):
    record = json.loads((folder / index.FILE_NAME).read_text())
    assert (record["samples"], record["bytes"]) == (2, (folder / "a.tar").stat().st_size)
    assert (record["shards"][0]["samples"], record["shards"][0]["keys"]) == (2, ["a", "b"])


def test_samples_are_numbered_through_all_tars(tmp_path):
    write_tar(tmp_path / "a.tar", *GOOD)
    write_tar(tmp_path / "b.tar", ("no sample", b""))
    write_tar(tmp_path / "c.tar", *sample("c", 5))
    made = scan.make_index(tmp_path)
    assert [(shard.name, place) for shard, place in map(made.locate, range(3))] == [
        ("a.tar", 0), ("a.tar", 1), ("c.tar", 0),
    ]  # fmt: skip
    both = index.join([made, made])
    assert len(both) == 6
    assert [both.locate(n)[0].name for n in range(6)] == ["a.tar", "a.tar", "c.tar"] * 2


def test_a_folder_that_cannot_be_indexed_is_named(tmp_path):
    assert refusal(scan.make_index, tmp_path).startswith(f"{tmp_path}: no .tar files here; give")
    write_tar(tmp_path / "a.tar.gz", *GOOD, mode="w:gz")
    assert "no .tar files here (1 are gzipped: unpack them)" in refusal(scan.make_index, tmp_path)
    write_tar(tmp_path / "a.tar", ("a.txt", b"no image"), GOOD[1])
    assert "its 1 tars hold no sample, a KEY.jpg beside a KEY.cls" in refusal(scan.make_index, tmp_path)
    os.symlink("nowhere", tmp_path / "z.tar")
    assert refusal(scan.make_index, tmp_path).startswith(f"{tmp_path / 'z.tar'}: No such file")
    assert not (tmp_path / index.FILE_NAME).exists()


def test_class_names_have_to_suffice_for_the_labels(folder):
    assert scan.make_index(folder, ["cat", "dog"]).classes == ["cat", "dog"]
    assert "has label 1, but 1 classes are named" in refusal(scan.make_index, folder, ["cat"])
    assert index.load(folder).classes == ["cat", "dog"]


def test_an_index_that_is_not_there_is_answered_with_the_command_that_makes_it(tmp_path):
    assert "no shards here; make them with `sparse-mlp-ds shards make" in refusal(index.load, tmp_path / "train")
    write_tar(tmp_path / "a.tar", *GOOD)
    expected = f"{tmp_path}: has tars but no index; run `sparse-mlp-ds shards index {tmp_path}`"
    assert refusal(index.load, tmp_path) == expected


DAMAGE = {
    "size": (lambda r: r["shards"][0].update(bytes=99999), "a.tar: has 10240 bytes, the index says 99999; run"),
    "missing tar": (lambda r: r["shards"][0].update(file="z.tar"), "z.tar: is missing; run"),
    "name that climbs": (lambda r: r["shards"][0].update(file="../a.tar"), "shard name '../a.tar' leaves the folder"),
    "absolute name": (lambda r: r["shards"][0].update(file="/a.tar"), "shard name '/a.tar' leaves the folder"),
    "parent": (lambda r: r["shards"][0].update(file=".."), "shard name '..' is no tar's"),
    "no name": (lambda r: r["shards"][0].update(file=""), "shard name '' is no tar's"),
    "name in lines": (lambda r: r["shards"][0].update(file="a\nb.tar"), "shard name 'a\\nb.tar' is no tar's"),
    "format": (lambda r: r.update(format=1), "index.json: damaged (format 1, this version reads 2 and 3)"),
    "no shards": (lambda r: r.pop("shards"), "index.json: damaged ('shards'); run"),
    "offset behind the end": (lambda r: r["shards"][0].update(offsets=[512, 10240]), "outside its 10240 bytes"),
    "offset before the start": (lambda r: r["shards"][0].update(offsets=[-1, 512]), "outside its 10240 bytes"),
    "size beyond the end": (lambda r: r["shards"][0].update(sizes=[1, 10000]), "outside its 10240 bytes"),
    "negative size": (lambda r: r["shards"][0].update(sizes=[1, -1]), "outside its 10240 bytes"),
    "a sum that overflows": (
        lambda r: r["shards"][0].update(offsets=[512, 2**63 - 1], sizes=[1, 2**63 - 1]), "outside its 10240 bytes",
    ),
    "more than 64 bits": (lambda r: r["shards"][0].update(offsets=[512, 2**70]), "index.json: damaged ("),
    "label of 40 bits": (lambda r: r["shards"][0].update(labels=[1, 2**40]), "index.json: damaged ("),
    "one label short": (lambda r: r["shards"][0]["labels"].pop(), "'a.tar' has lists of different lengths"),
    "lists in lists": (lambda r: r["shards"][0].update(labels=[[1], [2]]), "'a.tar' has lists of different lengths"),
    "hash": (lambda r: r["shards"][0].update(sha256="0" * 63), "shard 'a.tar' has no sha256"),
    "key of no text": (lambda r: r["shards"][0].update(keys=["a", "\ud800"]), "index.json: damaged ("),
    "foreign field": (lambda r: r["shards"][0].update(defects=[{"lines": 1}]), "index.json: damaged ("),
    "classes of one word": (lambda r: r.update(classes="cat"), "damaged (a str where a list belongs)"),
}  # fmt: skip


def rewrite(folder, record):
    (folder / index.FILE_NAME).write_text(json.dumps(record))


@pytest.mark.parametrize("change, said", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_index_is_named(folder, change, said):
    record = json.loads((folder / index.FILE_NAME).read_text())
    change(record)
    rewrite(folder, record)
    line = refusal(index.load, folder)
    assert line.startswith(str(folder))
    assert said in line


NONSENSE = [None, -5, "", "x", [], [None], {}, {"a": 1}, 1e400, float("nan"), [[[]]], True]
FIELDS = ["format", "classes", "shards", *(f"shards.{key}" for key in ("file", "bytes", "sha256", "keys"))]


@pytest.mark.parametrize("field", [*FIELDS, "shards.offsets", "shards.sizes", "shards.labels", "shards.defects"])
def test_nonsense_in_any_field_is_a_line_or_harmless(folder, field):
    sound = json.loads((folder / index.FILE_NAME).read_text())
    expected, refused = contents(index.load(folder)), 0
    for value in [*NONSENSE, ...]:
        record = json.loads(json.dumps(sound))
        part = record["shards"][0] if "." in field else record
        if value is ...:
            del part[field.removeprefix("shards.")]
        else:
            part[field.removeprefix("shards.")] = value
        rewrite(folder, record)
        try:
            found = index.load(folder)
        except index.UserError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
            continue
        assert contents(found) in (expected, [])  # another list of classes, no defects, no shards
    assert refused > 5


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 2, "shards": ' + b"9" * 5000 + b"}"],
    ids=["nothing", "cut", "list", "null", "no text", "deep", "long number"],
)
def test_what_is_no_index_at_all_is_named(folder, text):
    (folder / index.FILE_NAME).write_bytes(text)
    line = refusal(index.load, folder)
    assert line.startswith(f"{folder / index.FILE_NAME}: damaged (")
    assert line.endswith(f"run `sparse-mlp-ds shards index {folder}` again")


def test_a_sound_tar_is_verified(folder):
    assert verify.verify(index.load(folder).shards[0]) == []


def test_verify_names_a_flipped_byte(folder):
    (shard,) = index.load(folder).shards
    content = bytearray((folder / "a.tar").read_bytes())
    content[shard.offsets[1]] ^= 1
    (folder / "a.tar").write_bytes(content)
    changed, undecodable = verify.verify(shard)
    assert changed.startswith(f"{folder / 'a.tar'}: differs from the one that was indexed")
    assert undecodable.startswith(f"{folder / 'a.tar'}: sample 'b' at offset {shard.offsets[1]}: cannot be decoded (")


def test_verify_decodes_whole_images(tmp_path):
    write_tar(tmp_path / "a.tar", *GOOD, ("c.jpg", picture(9, "jpeg", (64, 64))[:-200]), ("c.cls", b"1"))
    (line,) = verify.verify(scan.make_index(tmp_path).shards[0])
    assert "sample 'c' at offset 4608: cannot be decoded (" in line


def test_verify_names_what_was_no_sample_when_indexed(tmp_path):
    write_tar(tmp_path / "a.tar", *GOOD, ("c.png", b""), ("c.cls", b"1"))
    assert verify.verify(scan.make_index(tmp_path).shards[0]) == [
        f"{tmp_path / 'a.tar'}: 'c' at offset 4096: empty image"
    ]


def test_verify_names_a_tar_that_is_gone_or_shorter(folder):
    (shard,) = index.load(folder).shards
    os.truncate(folder / "a.tar", 2600)
    changed, undecodable = verify.verify(shard)
    assert "differs from the one that was indexed" in changed and "sample 'b'" in undecodable
    (folder / "a.tar").unlink()
    assert verify.verify(shard) == [f"{folder / 'a.tar'}: is missing; copy or remake it"]


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([0] * 20 + [1] * 20 + [2] * 20, True),
        (np.random.default_rng(0).integers(3, size=60).tolist(), False),
        (list(range(60)), False),
        ([5] * 60, False),  # one class is no order
        ([0] * 50 + [1] * 10, True),
        ((np.random.default_rng(0).random(60) < 0.1).astype(int).tolist(), False),  # many neighbours share a class
        ([3], False),
    ],
    ids=["sorted", "mixed", "all differ", "one class", "two classes", "a rare class", "one sample"],
)
def test_tars_sorted_by_class_are_recognised(tmp_path, labels, expected):
    members = [[m for n, label in enumerate(part) for m in sample(f"{n}", label)] for part in (labels[:9], labels[9:])]
    for number, part in enumerate(members):
        write_tar(tmp_path / f"{number}.tar", *part)
    assert summary.sorted_by_class(scan.make_index(tmp_path)) is expected
