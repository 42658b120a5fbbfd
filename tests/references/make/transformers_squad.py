"""Records the scores of answers by transformers' port of SQuAD 2.0's official script. Needs transformers 4."""

from types import SimpleNamespace

import numpy as np
from transformers.data.metrics.squad_metrics import get_raw_scores

from tests.references.make import support

WORDS = [
    *("the", "a", "An", "THE", "tower", "Tower.", "tower's", "in", "1,000", "twenty-one", "Zürich", "–", "--", "(of)"),
    *("theatre", "another", "U.S.", "a.", "of", "old", "old,", "Ω", "“quoted”", "\u00a0", "it's"),
]
ANSWERS, MOST = 400, 3


def main() -> None:
    """Draw predictions and up to three references of few words, some of them equal but for order, case or articles."""
    draw = np.random.default_rng(0)
    text = lambda: " ".join(draw.choice(WORDS, draw.integers(0, 5)))  # noqa: E731
    references = [[text() for _ in range(draw.integers(0, MOST + 1))] for _ in range(ANSWERS)]
    predictions = [
        "the " + str(draw.choice(given)).upper() if given and draw.random() < 0.5 else text() for given in references
    ]
    examples = [
        SimpleNamespace(qas_id=str(number), answers=[{"text": one} for one in given])
        for number, given in enumerate(references)
    ]
    exact, f1 = get_raw_scores(examples, {str(number): one for number, one in enumerate(predictions)})
    found = {
        "predictions": np.array(predictions),
        "references": np.array([given + [""] * (MOST - len(given)) for given in references]),
        "counts": np.array([len(given) for given in references]),
        "exact": np.array([exact[str(number)] for number in range(ANSWERS)], dtype=float),
        "f1": np.array([f1[str(number)] for number in range(ANSWERS)], dtype=float),
    }
    about = f"Exact matches and F1 of {ANSWERS} answers, each compared with none to {MOST} references."
    repository = "https://github.com/huggingface/transformers"
    support.record("transformers_squad", found, about, repository, "transformers_squad", packages=["transformers"])


if __name__ == "__main__":
    main()
