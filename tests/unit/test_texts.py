"""Users' texts: what is read from files, how they become rows, and that nothing is lost in the tokenizer."""

import bz2
import gzip
import io
import json
import lzma

import numpy as np
import pytest
from sentencepiece import SentencePieceTrainer

from sparse_mlp_ds.data.text_format import SPECIAL, TextFormat
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.shards import packing, sentence_pieces, texts
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.texts import Columns, RawText
from tests.helpers import text_sets
from tests.helpers.tars import refusal

FORMAT = TextFormat(8, 300, "a" * 64, {name: number for number, name in enumerate(SPECIAL)}, "documents")
PAIRS = Columns("a", "b", "y")


def read(path, columns=PAIRS, passed_over=None):
    return list(texts.read([path], columns, passed_over))


@pytest.mark.parametrize("pack", [None, "gz", "bz2", "xz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"a": "one", "b": "two", "y": 1}\n\n{"y": "-", "b": "four\\n", "a": " \\u00e9 "}\n'),
        ("t.tsv", 'y\ta\tx\tb\n1\tone\t"\ttwo\n-\t é \t0\tfour\\n\n'),
        ("t.csv", 'a,b,y\none,two,1\r\n" é ","four\n",\n'),
    ],
)
def test_tables_are_read_packed_or_not(tmp_path, name, content, pack):
    path = tmp_path / (f"{name}.{pack}" if pack else name)
    squeeze = {None: bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[pack]
    path.write_bytes(squeeze(b"\xef\xbb\xbf" + content.encode()))  # with the byte order mark of some editors
    first, second = read(path)
    assert first == RawText("one", "two", "1")
    assert second == RawText(" é ", "four\\n" if name == "t.tsv" else "four\n", "")


def test_a_txt_file_is_one_document_byte_for_byte(tmp_path):
    content = "One.\r\n\r\n\tTwo  three \n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(tmp_path / "a.txt", Columns()) == [RawText(content)]


def test_empty_texts_are_passed_over_and_counted(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tb\ty\n\tx\t0\nx\t \t0\nx\ty\t0\n")
    passed_over = PassedOver()
    assert read(tmp_path / "t.tsv", passed_over=passed_over) == [RawText("x", "y", "0")]
    assert passed_over.lines() == [f"passed over 2: empty text (such as {tmp_path}/t.tsv, line 2)"]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("t.txt", b"caf\xe9", "t.txt: not UTF-8 text; save it as UTF-8"),
        ("t.tsv", b"a\tb\ty\ncaf\xe9\tx\t1\n", "t.tsv: not UTF-8 text; save it as UTF-8"),
        ("t.tsv", b"a\tb\nx\tx\n", "t.tsv: no column 'y' (there are a, b); name it with --text, --pair or --label"),
        ("t.csv", b"", "t.csv: no column 'a' (there are none)"),
        ("t.csv", b"a,b,y\n1,2\n", "t.csv: line 2 cannot be read (2 columns, the first line names 3); mend it"),
        ("t.jsonl", b'{"a": "x", "b": "x"}\n', "line 1: no column 'y' (there are a, b)"),
        ("t.jsonl", b'\n{"a": "x", "b"\n', "line 2 is no JSON object"),
        ("t.jsonl", b"[1]\n", "line 1 is no JSON object (a list); mend it"),
        ("t.jsonl", b'{"a": "\\ud800", "b": "x", "y": 0}\n', "line 1 has half of a character"),
        ("t.tsv.gz", b"no gzip", "t.tsv.gz: cannot be read"),
        ("t.tsv.xz", b"no xz", "t.tsv.xz: cannot be read"),
        ("t.txt", b"x", "t.txt: has no columns; give a .jsonl, .tsv or .csv file for a, b, y"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    columns = Columns() if b"caf" in content and name == "t.txt" else PAIRS
    assert part in refusal(read, tmp_path / name, columns)


def lay(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.txt", "b/c.txt", "b/d.jsonl"], {"": ["a.txt", "b/c.txt", "b/d.jsonl"]}),
        (["train/b/c.txt", "dev/d.txt"], {"train": ["train/b/c.txt"], "val": ["dev/d.txt"]}),
        (["train.tsv.xz", "dev.tsv", "test.tsv"], {"train": ["train.tsv.xz"], "val": ["dev.tsv"]}),
        (["train.jsonl", "TEST.jsonl"], {"train": ["train.jsonl"], "val": ["TEST.jsonl"]}),
        (["train.jsonl", "more.jsonl"], {"": ["more.jsonl", "train.jsonl"]}),
    ],
)  # fmt: skip
def test_splits_go_by_their_usual_names(tmp_path, names, expected):
    lay(tmp_path, *names)
    found = texts.splits(tmp_path, PassedOver())
    assert {name: [str(path.relative_to(tmp_path)) for path in paths] for name, paths in found.items()} == expected


def test_what_is_no_text_is_passed_over(tmp_path):
    lay(tmp_path, "train/a.txt", "val/a.txt", "val/b.pdf", "val/.c.txt", "val/README", "test/x.txt")
    passed_over = PassedOver()
    texts.splits(tmp_path, passed_over)
    assert sorted(passed_over.counts.items()) == [
        ("beside the splits that are made", 1), ("hidden", 1), ("no text by its suffix .pdf", 1),
        ("no text, by its lack of one", 1),
    ]  # fmt: skip


def test_a_source_without_texts_is_refused(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    assert "no text by its suffix; give txt" in refusal(texts.splits, tmp_path / "a.pdf", PassedOver())
    assert "no texts here; a text is a txt" in refusal(texts.splits, tmp_path, PassedOver())
    assert "no such file or folder" in refusal(texts.splits, tmp_path / "b", PassedOver())


def test_documents_are_cut_into_rows_and_the_rest_is_left_out():
    rows = packing.documents(FORMAT, np.arange(10, 24))
    assert rows.tolist() == [[2, *range(10, 16), 3], [2, *range(16, 22), 3]] and rows.dtype == np.dtype("<u2")
    assert len(packing.documents(FORMAT, np.arange(5))) == 0


def test_a_stream_goes_on_over_the_ends_of_documents():
    stream, rows = packing.Stream(FORMAT), []
    for first, count in ((10, 4), (20, 9), (30, 1), (40, 12)):
        rows += stream.rows(np.arange(first, first + count)).tolist()
    every = [*range(10, 14), 3, *range(20, 29), 3, 30, 3, *range(40, 52), 3]
    assert [token for row in rows for token in row[1:-1]] == every[: 6 * len(rows)]
    assert all(row[0] == 2 and row[-1] == 3 for row in rows)
    assert len(rows) == len(every) // 6 and stream.left_out == len(every) % 6


@pytest.mark.parametrize(
    ("first", "second", "row", "cut"),
    [
        (3, None, [2, 10, 11, 12, 3, 0, 0, 0], 0),
        (9, None, [2, 10, 11, 12, 13, 14, 15, 3], 3),
        (2, 2, [2, 10, 11, 3, 50, 51, 3, 0], 0),
        (9, 2, [2, 10, 11, 12, 3, 50, 51, 3], 6),
        (1, 9, [2, 10, 3, 50, 51, 52, 53, 3], 5),
        (9, 9, [2, 10, 11, 12, 3, 50, 51, 3], 13),
    ],
)
def test_a_text_or_pair_is_a_row(first, second, row, cut):
    pair = None if second is None else np.arange(50, 50 + second)
    found, lost = packing.one_row(FORMAT, np.arange(10, 10 + first), pair)
    assert (found.tolist(), lost) == ([row], cut)


@pytest.mark.parametrize("context", [1, 6, 7, 20])
def test_windows_cover_a_context(context):
    found = list(packing.windows(context, 6, 4))
    assert found[-1][1] == context and all(0 < end - begin <= 6 for begin, end in found)
    assert {token for begin, end in found for token in range(begin, end)} == set(range(context))
    assert [begin for begin, _ in found] == list(range(0, 4 * len(found), 4))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    sentence_pieces.train((one.text for one in text_sets.texts(60)), 360, path)
    return Tokenizer(path)


@pytest.mark.parametrize(
    "text",
    [
        "the state  of the union", " a\tb\r\n\nc ", "Zürich 你好 \U0001f600\x00", "[MASK] [CLS] <0x41> <s>",
        "e\u0301 \u00e9 \ufb01",
    ],
)  # fmt: skip
def test_every_text_is_read_back_exactly(tokenizer, text):
    tokens, offsets = tokenizer.encode_with_offsets(text)
    assert tokens == tokenizer.encode(text) and tokenizer.decode(tokens) == text
    assert not set(tokens) & set(tokenizer.special.values()), "no text contains a special token"
    assert "".join(text[begin:end] for begin, end in offsets) == text


def test_a_tokenizer_has_its_special_tokens_and_the_same_texts_give_the_same_file(tokenizer, tmp_path):
    assert tokenizer.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert [tokenizer.piece(n) for n in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.vocabulary == 360
    sentence_pieces.train((one.text for one in text_sets.texts(60)), 360, tmp_path / "again")
    assert Tokenizer(tmp_path / "again").sha256 == tokenizer.sha256


@pytest.mark.parametrize(
    ("vocabulary", "part"), [(100_000, "the texts give no more than"), (262, "the characters of the texts alone need")]
)
def test_a_vocabulary_that_texts_cannot_fill_is_refused(tmp_path, vocabulary, part):
    given = (one.text for one in text_sets.texts(60))
    line = refusal(sentence_pieces.train, given, vocabulary, tmp_path / "x")
    assert line.startswith(f"--vocabulary {vocabulary}: ") and part in line


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    assert "is no tokenizer" in refusal(Tokenizer, tmp_path / "junk")
    assert "No such file" in refusal(Tokenizer, tmp_path / "missing")
    plain, given = io.BytesIO(), (one.text for one in text_sets.texts(60))
    SentencePieceTrainer.train(
        sentence_iterator=given, model_writer=plain, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "plain").write_bytes(plain.getvalue())
    assert "has no token [PAD] or <pad>" in refusal(Tokenizer, tmp_path / "plain")


def test_a_tokenizer_of_another_project_is_used_by_its_names(tmp_path):
    content, given = io.BytesIO(), (one.text for one in text_sets.texts(60))
    as_albert = {"pad_id": 0, "pad_piece": "<pad>", "unk_id": 1, "bos_id": -1, "eos_id": -1}
    as_albert |= {"control_symbols": ["[CLS]", "[SEP]"], "user_defined_symbols": ["[MASK]"]}
    SentencePieceTrainer.train(
        sentence_iterator=given, model_writer=content, vocab_size=70, hard_vocab_limit=False, minloglevel=2, **as_albert
    )
    (tmp_path / "albert").write_bytes(content.getvalue())
    found = Tokenizer(tmp_path / "albert")
    assert [found.piece(found.special[name]) for name in SPECIAL] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


def test_labels_of_json_are_names_of_classes(tmp_path):
    values = [0, 1.5, True, None, "x"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": "t", "y": value}) + "\n" for value in values))
    assert [one.label for one in read(tmp_path / "t.jsonl", Columns(label="y"))] == ["0", "1.5", "true", "", "x"]
