"""Tars of rows of tokens: their size, that they are indexed again and verified, and what in them is no row."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.text_format import SPECIAL, TextFormat
from sparse_mlp_ds.shards import row_scan, row_writer, scan
from tests.helpers import text_sets
from tests.helpers.remote import Server
from tests.helpers.tars import link, refusal, write_tar


def test_tars_of_real_size_are_hardly_larger_than_their_tokens(tmp_path):
    text = TextFormat(128, 4096, "a" * 64, {name: number for number, name in enumerate(SPECIAL)}, "documents")
    collected = row_writer.RowFile(tmp_path / "rows", text)
    for label in range(4):
        collected.add(np.full((2500, 128), 7), label)
    (tmp_path / "out").mkdir()
    row_writer.write(
        tmp_path / "out", "x", collected, row_writer.Layout(), ["a", "b", "c", "d"], "", lambda done, total: None
    )
    index = index_file.load(tmp_path / "out")
    assert len(index) == 10_000
    assert sum(shard.bytes for shard in index.shards) <= 1.05 * 10_000 * 128 * 2


@pytest.mark.parametrize("packing", ["texts", "documents"])
@pytest.mark.parametrize("lost", ["nothing", "index", "half of the index"])
def test_tars_are_indexed_again(shards, tmp_path, packing, lost):
    classes = 3 if packing == "texts" else 0
    (index,) = text_sets.make(tmp_path / "out", text_sets.texts(30, classes, words=20), packing=packing)
    path, text = tmp_path / "out/index.json", index.as_json()
    if lost == "index":
        path.unlink()
    if lost == "half of the index":
        path.write_text(json.dumps({"format": 3, "text": index.text.record(), "classes": index.classes}))
    code, said, complaints = shards("index", tmp_path / "out")
    assert (code, complaints) == (0, [])
    again = index_file.load(tmp_path / "out")
    assert [shard.record() for shard in again.shards] == [shard.record() for shard in index.shards]
    assert again.text.record() | {"packing": packing} == index.text.record()
    if lost != "index":
        assert json.loads(again.as_json()) | {"plan": index.plan} == json.loads(text)
    assert any("rows of 16 tokens" in line for line in said)


def npy(array, **options):
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


ROWS = np.full((2, 4), 9, "<u2")


def test_what_is_no_block_is_named_and_never_unpickled(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    evil = np.array([type("Evil", (), {"__reduce__": lambda self: (open, (str(ran), "w"))})()], dtype=object)
    cut = npy(ROWS)[:-2]
    path = write_tar(
        tmp_path / "a.tar",
        ("a.tokens.npy", npy(ROWS)), ("a.labels.npy", npy(np.array([0, 3], "<i2"))),
        ("b.tokens.npy", npy(evil, allow_pickle=True)),
        ("c.tokens.npy", cut),
        ("d.tokens.npy", npy(ROWS.astype(float))),
        ("e.tokens.npy", npy(np.asfortranarray(ROWS))),
        ("f.tokens.npy", b"no array"),
        ("g.labels.npy", npy(np.array([0, 3], "<i2"))),
        ("h.tokens.npy", npy(ROWS)), ("h.labels.npy", npy(np.array([0], "<i2"))),
        ("i.tokens.npy", npy(ROWS)), ("i.labels.npy", npy(np.array([0, -2], "<i2"))),
        ("j.tokens.npy", npy(ROWS[:, :3].copy())),
        ("a.tokens.npy", npy(ROWS)),
        link("k.tokens.npy", "a.tokens.npy"),
        ("l.tokens.npy", npy(ROWS)),
    )  # fmt: skip
    shard = scan.scan(path)
    reasons = {entry.key: entry.reason for entry in shard.bad_entries}
    assert not ran.exists()
    assert [shard.key(n) for n in range(len(shard))] == ["a:0", "a:1", "l:0", "l:1"]
    assert shard.labels.tolist() == [0, 3, -1, -1] and shard.row_bytes == 8
    assert reasons.pop("b") == "b.tokens.npy holds pickled objects, which are never read"
    assert reasons.pop("c") == "c.tokens.npy does not have the size that its header says"
    assert reasons.pop("d") == "d.tokens.npy is float64 of shape (2, 4), not uint16 or uint32 of [rows, n]"
    assert reasons.pop("e") == "e.tokens.npy does not have the size that its header says"
    assert reasons.pop("f").startswith("f.tokens.npy is no array (")
    assert reasons.pop("g") == "needs one tokens.npy, has g.labels.npy"
    assert reasons.pop("h") == "h.labels.npy is int16 of shape (1,), not int16 or int32 of [2]"
    assert reasons.pop("i") == "i.labels.npy has label -2"
    assert reasons.pop("j") == "rows of 6 bytes among rows of 8"
    assert reasons.pop("a") == "duplicate key"
    assert reasons.pop("k").startswith("link in place of a file, k.tokens.npy")
    assert not reasons


def test_rows_need_their_tokenizer_and_one_length(tmp_path):
    write_tar(tmp_path / "a.tar", ("a.tokens.npy", npy(ROWS)))
    assert "has rows of tokens, but no tokenizer.model" in refusal(scan.make_index, tmp_path)
    write_tar(tmp_path / "b.tar", ("b.tokens.npy", npy(ROWS[:, :3].copy())))
    assert "b.tar: its rows have 6 bytes, those of" in refusal(scan.make_index, tmp_path)
    write_tar(tmp_path / "b.tar", ("b.tokens.npy", b"no array"))
    (made,) = text_sets.make(tmp_path / "made", text_sets.texts(20))
    (tmp_path / "tokenizer.model").write_bytes(Path(made.source, "tokenizer.model").read_bytes())
    index = scan.make_index(tmp_path)
    assert [len(shard) for shard in index_file.load(tmp_path).shards] == [2, 0]
    assert index.text.length == 4 and index.text.tokenizer == made.text.tokenizer
    write_tar(tmp_path / "b.tar", ("b.png", b"x"), ("b.cls", b"0"))
    assert "some tars hold images, some rows of tokens" in refusal(scan.make_index, tmp_path)


def test_a_block_is_found_behind_a_damaged_header(tmp_path):
    path = write_tar(tmp_path / "a.tar", *((f"{n}.tokens.npy", npy(ROWS)) for n in range(3)))
    content = bytearray(path.read_bytes())
    content[257:262] = b"xxxxx"
    path.write_bytes(content)
    assert row_scan.holds_rows(path)
    shard = scan.scan(path)
    assert len(shard) == 4 and shard.key(0) == "1:0" and "damaged header" in shard.bad_entries[0].reason


def test_verify_names_what_has_changed(shards, tmp_path):
    out = tmp_path / "out"
    (index,) = text_sets.make(out, text_sets.texts(20), per_shard=100)
    (shard,) = index.shards
    assert shards("verify", out)[0] == 0
    with open(shard.path, "r+b") as tar:
        tar.seek(int(shard.offsets[7]))
        tar.write(b"\xff\xff")
    other = tmp_path / "other"
    text_sets.make(other, text_sets.texts(40))
    (out / "tokenizer.model").write_bytes((other / "tokenizer.model").read_bytes())
    code, _, lines = shards("verify", out)
    assert code == 2
    assert [line.removeprefix("error: ") for line in lines] == [
        f"{out}/tokenizer.model: is not the tokenizer that made the tokens (sha256); copy that one there",
        f"{shard.path}: differs from the one that was indexed (sha256); index or remake it",
        f"{shard.path}: sample '{shard.key(7)}' at offset {shard.offsets[7]}: "
        "has token 65535, outside the vocabulary of 340",
    ]
    (out / "tokenizer.model").unlink()
    assert "tokenizer.model: is missing" in shards("verify", out)[2][0]


def test_tars_behind_a_url_are_indexed_with_their_tokenizer(shards, tmp_path):
    (index,) = text_sets.make(tmp_path / "there", text_sets.texts(20))
    (tmp_path / "there/index.json").unlink()
    with Server(tmp_path / "there") as server:
        tars = f"{server.url}/there-{{000000..000001}}.tar"
        code, *_ = shards("index", tars, "--out", tmp_path / "index.json")
        assert code == 0
        found = index_file.parse((tmp_path / "index.json").read_bytes(), server.url)
        assert [shard.record() for shard in found.shards] == [shard.record() for shard in index.shards]
        assert found.text.tokenizer == index.text.tokenizer
        (tmp_path / "there/tokenizer.model").unlink()
        code, _, (line,) = shards("index", tars, "--out", tmp_path / "again.json")
        assert code == 2 and "/tokenizer.model: cannot be fetched" in line
