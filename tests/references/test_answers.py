"""Scores of answers against transformers' port of SQuAD 2.0's official script."""

import pytest

from sparse_mlp_ds.data.answers import exact_match, f1
from tests.helpers.references import load, text


def test_answers_are_scored_as_by_squads_script():
    recorded = load("transformers_squad")
    predictions, references = (text("transformers_squad", key) for key in ("predictions", "references"))
    given = [row[:count] for row, count in zip(references, recorded["counts"].tolist(), strict=True)]
    pairs = list(zip(predictions, given, strict=True))
    assert [exact_match(*pair) for pair in pairs] == recorded["exact"].tolist()
    assert [f1(*pair) for pair in pairs] == pytest.approx(recorded["f1"].tolist(), abs=1e-12)
    assert 0 < recorded["exact"].mean() < 1 and (recorded["f1"] - recorded["exact"]).mean() > 0.01
