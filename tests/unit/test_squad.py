"""SQuAD's questions as rows: every answer is found again in the window that it is labelled in."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import questions
from sparse_mlp_ds.data.questions import Question, Window
from sparse_mlp_ds.data.tokenizer import Tokenizer
from tests.helpers import text_sets
from tests.helpers.tars import refusal

LENGTH = 48


def file_of(path, contexts, first=0):
    """A file of two questions about each of some contexts; the second one has no answer in the context."""
    paragraphs = []
    for number in range(first, first + contexts):
        context = f"Zürich – {text_sets.sentence(number, 30)} Mitte {text_sets.sentence(number + 1, 30)} Ende."
        answer = "Mitte" if number % 2 else "Ende"
        start = context.index(answer)
        asked = {
            "id": f"{number}a",
            "question": f" Is it {number}? ",
            "answers": [{"text": answer, "answer_start": start}],
        }
        unanswered = {"id": f"{number}b", "question": "Why?", "answers": [], "is_impossible": True,
                      "plausible_answers": [{"text": answer, "answer_start": start}]}  # fmt: skip
        paragraphs.append({"context": context, "qas": [asked, unanswered]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    return path


@pytest.fixture
def made(shards, tmp_path):
    train, dev = file_of(tmp_path / "train.json", 12), file_of(tmp_path / "dev.json", 5, first=20)
    flags = ("--length", LENGTH, "--stride", 12, "--vocabulary", 360)
    code, said, complaints = shards("make", "squad", train, dev, tmp_path / "out", *flags)
    assert (code, complaints) == (0, [])
    return tmp_path / "out", said


def test_windows_cover_contexts_and_labels_are_the_answers(made, shards):
    out, said = made
    assert said[0] == f"{out}/train: made of 24 questions about 12 contexts, 12 of them with an answer"
    index, tokenizer = index_file.load(out / "val"), Tokenizer(out / "val/tokenizer.model")
    assert said[3] == f"{out}/val: {len(index)} rows of {LENGTH} tokens in 1 tars, with the places of answers"
    assert (index.text.packing, index.classes) == ("spans", [])
    found, (shard,) = questions.load(out / "val", len(index)), index.shards
    assert [question.id for question in found] == [f"{n}{x}" for n in range(20, 25) for x in "ab"]
    content = Path(shard.path).read_bytes()
    with_label = set()
    for question in found:
        covered = set()
        for window in question.windows:
            offset, label = int(shard.offsets[window.row]), int(shard.labels[window.row])
            row = np.frombuffer(content[offset : offset + 2 * LENGTH], "<u2").tolist()
            first, end = window.first, window.first + len(window.offsets)
            assert row[0] == 2 and row[first - 1] == row[end] == 3 and set(row[end + 1 :]) <= {0}
            assert tokenizer.decode(row[1 : first - 1]) == question.question == question.question.strip()
            inside = [question.context[a:b] for a, b in window.offsets]
            assert tokenizer.decode(row[first:end]) == "".join(inside)
            covered |= {place for a, b in window.offsets for place in range(a, b)}
            start, stop = divmod(label, LENGTH)
            if label:
                assert first <= start <= stop < end
                with_label.add(question.id)
                assert "".join(inside[start - first : stop + 1 - first]).strip() in (
                    question.answers[0],
                    question.answers[0] + ".",
                )
            elif question.answers:
                assert question.answers[0] not in "".join(inside)
        assert covered == set(range(len(question.context)))
        assert len(question.windows) > 1
    assert with_label == {f"{n}a" for n in range(20, 25)}
    assert [question.answers for question in found if question.id.endswith("b")] == [[]] * 5
    assert shards("verify", out)[0] == 0


def test_questions_are_read_as_they_were_written(tmp_path):
    window = Window(0, 3, [(0, 4), (4, 9)])
    one = Question("a", "A?", "some text", ["some"], [window])
    two = Question("b", "B?", "some text", [], [Window(1, 4, [(0, 4), (4, 9)]), Window(2, 4, [(4, 9)])])
    three = Question("c", "C?\u2028", "other text", [], [Window(3, 3, [(4, 9)])])
    questions.save(tmp_path / "questions.jsonl", [one, two, three])
    assert questions.load(tmp_path, 4) == [one, two, three]
    assert (tmp_path / "questions.jsonl").read_text().count("some text") == 1


def test_an_index_that_is_made_again_knows_the_questions(made, shards):
    out, _ = made
    before = index_file.load(out / "train")
    (out / "train/index.json").unlink()
    code, _, complaints = shards("index", out / "train")
    assert (code, complaints) == (0, [])
    after = index_file.load(out / "train")
    assert after.text == before.text and after.shards[0].record() == before.shards[0].record()


def test_damaged_questions_are_told(made, shards):
    out, _ = made
    path = out / "val/questions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    code, _, (line,) = shards("verify", out)
    assert code == 2 and "its windows are not the " in line
    for content in ("{", "[]", '{"id": 1}'):
        path.write_text(content)
        assert "questions.jsonl: damaged" in refusal(questions.load, out / "val", 3)
    path.unlink()
    assert "questions.jsonl: No such file" in refusal(questions.load, out / "val", 3)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda record: record.pop("data"), "is no file of SQuAD ('data')"),
        (lambda record: record.update(data=[]), "has no questions"),
        (lambda record: record["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(answer_start=1),
         "answer 'Ende' is not at character 1"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_squad_is_refused(shards, tmp_path, change, part):
    path = file_of(tmp_path / "dev.json", 3)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    code, _, (line,) = shards("make", "squad", path, tmp_path / "out")
    assert code == 2 and part in line and "dev.json: " in line and not (tmp_path / "out").exists()


def test_a_row_without_room_for_a_window_is_refused(shards, tmp_path):
    path = file_of(tmp_path / "dev.json", 3)
    code, _, (line,) = shards("make", "squad", path, tmp_path / "out", "--length", 48, "--vocabulary", 340)
    assert code == 2 and "less than --stride 128; change one of them" in line
