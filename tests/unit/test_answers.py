"""SQuAD's scores on strings whose scores follow from its rules by hand."""

import pytest

from sparse_mlp_ds.data.answers import exact_match, f1, words


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Eiffel Tower.", ["eiffel", "tower"]),
        ("  a  ,b'c ", ["bc"]),  # "a" is an article, punctuation vanishes without a space
        ("An apple; another", ["apple", "another"]),
        ("theatre", ["theatre"]),  # articles are whole words
        ("the", []),
        ("3,000", ["3000"]),
        ("twenty-one", ["twentyone"]),
        ("Zürich – Ω", ["zürich", "–", "ω"]),  # only ASCII's punctuation counts
    ],
)
def test_words(answer, expected):
    assert words(answer) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f"),
    [
        ("The Tower", ["tower!"], 1, 1),
        ("in the tower", ["tower", "the old tower"], 0, 2 / 3),  # common 1 of 2 and 1: 2*1/3; of 2 and 2: 1/2
        ("old tower", ["the tall old tower of London"], 0, 2 * 2 / (2 + 5)),
        ("one one two", ["one two two"], 0, 2 * 2 / 6),  # repeated words count as often as both have them
        ("tower", ["church"], 0, 0),
        ("", [], 1, 1),  # rightly no answer
        ("tower", [], 0, 0),
        ("", ["tower"], 0, 0),
        ("", ["the"], 1, 1),  # a reference without words counts as none
        ("the", ["a", "tower"], 0, 0),  # of these references only "tower" has words
    ],
)
def test_scores(prediction, references, exact, f):
    assert exact_match(prediction, references) == exact
    assert f1(prediction, references) == pytest.approx(f, abs=1e-12)
