"""`sparse-mlp-ds shards make text`: what it makes of documents, texts and pairs, and what it refuses."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.tokenizer import Tokenizer
from tests.helpers import text_sets
from tests.helpers.tars import refusal

SMALL = ("--length", 16, "--vocabulary", 340, "--workers", 1)


def rows(index):
    """All rows of a data set as lists of tokens, in its order."""
    found = []
    for shard in index.shards:
        content = Path(shard.path).read_bytes()
        found += [
            np.frombuffer(content[offset : offset + size], index.text.dtype).tolist()
            for offset, size in zip(shard.offsets, shard.sizes, strict=True)
        ]
    return found


def labels(index):
    return np.concatenate([shard.labels for shard in index.shards]).tolist()


def everything(folder):
    """Name and content of all files in a folder and below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def documents(tmp_path):
    """A folder of 20 documents."""
    for number in range(20):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number:02d}.txt").write_text(text_sets.sentence(number, words=40))
    return tmp_path / "in"


def test_documents_are_held_out_whole_and_packed(shards, documents, tmp_path):
    (documents / "no.pdf").write_text("x")
    (documents / "empty.txt").write_text("\n")
    out = tmp_path / "out"
    code, said, complaints = shards("make", "text", documents, out, *SMALL, "--held-out", 10)
    assert (code, complaints) == (0, [])
    assert said[0].startswith("passed over 1: ") and said[1].startswith("passed over 1: ")
    train, val = index_file.load(out / "train"), index_file.load(out / "val")
    assert said[2].startswith(f"{out}/train: made of 18 texts with ") and said[2].endswith("% of which fit into no row")
    assert said[3] == f"{out}/train: {len(train)} rows of 16 tokens in 1 tars, without labels"
    tokenizer = Tokenizer(out / "val/tokenizer.model")
    assert train.text == val.text and val.text.tokenizer == tokenizer.sha256 and val.text.packing == "documents"
    texts = [tokenizer.decode(row) for row in rows(val)]
    held_out = [text_sets.sentence(number, words=40) for number in (5, 15)]
    assert all(any(text in whole for whole in held_out) for text in texts)
    for whole in held_out:
        tokens = tokenizer.encode(whole)
        pieces = [tokens[n : n + 14] for n in range(0, len(tokens) - 13, 14)]
        assert all([2, *piece, 3] in rows(val) for piece in pieces)
    assert shards("verify", out)[:2] == (
        0, [f"{out}/train: {len(train)} rows, all sound", f"{out}/val: {len(val)} rows, all sound"],
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_two_makings_are_the_same_bytes_with_any_number_of_processes(shards, documents, tmp_path, workers):
    for name in ("one", "two"):
        number = 1 if name == "one" else workers
        code, *_ = shards(
            "make", "text", documents, tmp_path / name, *SMALL[:4], "--workers", number, "--per-shard", 30
        )
        assert code == 0
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert [name for name in one if name.endswith(".tar")] == [f"one-{n:06d}.tar" for n in range(len(one) - 2)]
    del one["index.json"], two["index.json"]  # which say the tars' names
    assert one == {name.replace("two", "one"): content for name, content in two.items()}


def test_the_same_command_again_does_nothing_and_a_different_one_is_refused(shards, documents, tmp_path):
    command = ("make", "text", documents, tmp_path / "out", *SMALL)
    assert shards(*command)[0] == 0
    before = {name: os.stat(tmp_path / "out" / name).st_mtime_ns for name in everything(tmp_path / "out")}
    code, said, _ = shards(*command)
    assert code == 0 and len(said) == 1 and "rows of 16 tokens" in said[0]
    assert {name: os.stat(tmp_path / "out" / name).st_mtime_ns for name in before} == before
    code, _, (line,) = shards("make", "text", documents, tmp_path / "out", "--length", 24, *SMALL[2:])
    assert code == 2 and line.endswith(
        "holds something else than these texts with these options; remove it or name another"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"], "nothing unfinished is left"


def test_what_a_killed_process_has_left_goes(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    other = subprocess.Popen(["sleep", "60"])
    try:
        for pid in (int(dead.stdout), other.pid):
            (tmp_path / f".out.{platform.node()}.{pid}").mkdir()
        text_sets.make(tmp_path / "out", text_sets.texts(20))
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == [f".out.{platform.node()}.{other.pid}", "out"], "one still works"
    finally:
        other.kill()
        other.wait()


def test_texts_that_are_empty_alone_are_refused(shards, tmp_path):
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.txt").write_text("some words" if number else " \n")
    code, _, (line,) = shards("make", "text", tmp_path / "in", tmp_path / "out", *SMALL, "--held-out", 10)
    assert code == 2 and line == "error: val: has no text, or empty ones alone; give more texts"
    for number in range(3):
        (tmp_path / f"in/{number}.txt").write_text("\n")
    code, _, (line,) = shards("make", "text", tmp_path / "in", tmp_path / "out", *SMALL)
    assert code == 2 and line == "error: the source: has no text, or empty ones alone; give more texts"


def test_labelled_texts_and_pairs_are_a_row_each(shards, tmp_path):
    lines = [f"{text_sets.sentence(n, 3)}\t{text_sets.sentence(n + 50, 3)}\t{n % 3 * 5}\n" for n in range(30)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/train.tsv").write_text("a\tb\ty\n" + "".join(lines[:20]))
    (tmp_path / "in/dev.tsv").write_text("a\tb\ty\n" + "".join(lines[20:]) + "x\ty\t-\n")
    columns = ("--text", "a", "--pair", "b", "--label", "y")
    code, said, _ = shards("make", "text", tmp_path / "in", tmp_path / "out", *columns, "--length", 48, *SMALL[2:])
    assert code == 0
    assert said[1] == f"{tmp_path}/out/train: 20 rows of 48 tokens in 1 tars, 3 classes"
    assert said[3] == f"{tmp_path}/out/val: 11 rows of 48 tokens in 1 tars, 3 classes"
    index, tokenizer = index_file.load(tmp_path / "out/val"), Tokenizer(tmp_path / "out/val/tokenizer.model")
    assert index.classes == ["0", "5", "10"] and index.text.packing == "texts"
    found = {}
    for row, label in zip(rows(index), labels(index), strict=True):
        end = row.index(0) if 0 in row else 48
        middle = row.index(3)
        assert (row[0], row[end - 1], set(row[end:])) == (2, 3, {0} if end < 48 else set())
        found[tokenizer.decode(row[1:middle]), tokenizer.decode(row[middle + 1 : end - 1])] = label
    expected = {tuple(line.split("\t")[:2]): n % 3 for n, line in enumerate(lines)}
    assert found == dict(list(expected.items())[20:]) | {("x", "y"): -1}


def test_documents_with_labels_give_them_to_all_of_their_rows(tmp_path):
    (index,) = text_sets.make(tmp_path / "out", text_sets.texts(9, classes=3, words=40), packing="documents")
    tokenizer = Tokenizer(tmp_path / "out/tokenizer.model")
    assert len(index) > 18 and index.classes == ["class 0", "class 1", "class 2"]
    whole = [text_sets.sentence(number, 40) for number in range(9)]
    for row, label in zip(rows(index), labels(index), strict=True):
        assert label in {number % 3 for number in range(9) if tokenizer.decode(row) in whole[number]}


def test_rows_of_a_stream_have_no_labels(tmp_path):
    (index,) = text_sets.make(tmp_path / "out", text_sets.texts(30, classes=3), packing="stream")
    assert index.classes == [] and set(labels(index)) == {-1}
    tokenizer = Tokenizer(tmp_path / "out/tokenizer.model")
    assert any(row[1:-1].count(3) for row in rows(index)), "a row goes on with the next text"
    assert len(index) == sum(len(tokenizer.encode(text_sets.sentence(n))) + 1 for n in range(30)) // 14


def test_a_given_tokenizer_is_kept(shards, documents, tmp_path):
    assert shards("make", "text", documents, tmp_path / "one", *SMALL)[0] == 0
    tokenizer = tmp_path / "one/tokenizer.model"
    assert shards("make", "text", documents, tmp_path / "two", "--length", 32, "--tokenizer", tokenizer)[0] == 0
    assert (tmp_path / "two/tokenizer.model").read_bytes() == tokenizer.read_bytes()
    assert index_file.load(tmp_path / "two").text.vocabulary == 340


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["text", "{in}", "{out}", "--stride", 4], "shards make text: --stride is not for this source; leave it out"),
        (["text", "{in}", "{out}", "--resize", 4], "--resize is for images"),
        (["text", "{in}", "{out}", "--length", 4], "--length 4; it is at least 8"),
        (["text", "{in}", "{out}", "--held-out", 1], "--held-out 1; it is at least 2"),
        (["text", "{in}", "{out}", "--tokenizer", "x", "--vocabulary", 400], "leave out --vocabulary or --tokenizer"),
        (["text", "{in}", "{out}", "--tokenizer", "{in}/nowhere"], "nowhere: No such file"),
        (["text", "{in}", "{out}", "--label", "y"], "has no columns"),
        (["text", "{in}", "{out}", "--label", "y", "--pack", "stream"], "leave out --label"),
        (["text", "{in}", "{out}", "--pair", "y", "--pack", "documents"], "leave out --pack documents"),
        (["text", "{in}", "{in}/out"], "where it would become a text; name another OUT"),
        (["text", "{in}", "{in}", "{out}"], "give one SOURCE"),
        (["text", "{in}", "{out}"], "--vocabulary 32000: the texts give no more than"),
        (
            ["text", "{in}", "{out}", "--vocabulary", 400, "--length", 500],
            "none of the 20 texts fills a row of 500 tokens",
        ),
        (["speeches", "{in}", "{out}"], "shards make speeches: give the folder OUT alone"),
        (["speeches", "{out}", "--label", "y"], "--label is not for this source"),
        (["squad", "{out}"], "shards make squad: give the file of the training questions"),
        (["images", "{in}", "{out}", "--length", 16], "shards make images: --length is for text; leave it out"),
        (["images", "{in}", "{out}", "--held-out", 16], "shards make images: --held-out is for text; leave it out"),
        (["texts", "{in}", "{out}"], "unknown source 'texts'; did you mean 'text'?"),
    ],
)
def test_bad_commands_are_one_line_and_leave_nothing(shards, documents, tmp_path, arguments, part):
    given = [str(one).replace("{in}", str(documents)).replace("{out}", str(tmp_path / "out")) for one in arguments]
    code, said, complaints = shards("make", *given)
    assert code == 2 and said == []
    (line,) = complaints
    assert part in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_where_images_are_needed_rows_are_refused(shards, tmp_path):
    (index,) = text_sets.make(tmp_path / "rows", text_sets.texts(20))
    code, _, (line,) = shards("make", "wds", tmp_path / "rows", tmp_path / "out")
    assert code == 2 and "holds rows of tokens; this needs images" in line
    from sparse_mlp_ds.shards.any_images import index_of
    from sparse_mlp_ds.shards.passed_over import PassedOver

    for path in (tmp_path / "rows", Path(index.shards[0].path)):
        assert "holds rows of tokens; this needs images" in refusal(index_of, path, PassedOver())


def test_a_missing_package_names_its_extra(monkeypatch, shards, documents, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    code, _, (line,) = shards("make", "text", documents, tmp_path / "out", *SMALL)
    assert code == 2 and "package sentencepiece cannot be imported" in line and '"sparse_mlp_ds[text]"' in line
