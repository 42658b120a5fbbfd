"""How a predicted answer is scored by SQuAD's rules: exact matches and F1 over words (Rajpurkar et al., 2016 and 2018).

Both scores compare answers as lists of words in lower case, without punctuation and articles. Of several reference
answers the one that scores best counts; a question without references is answered rightly by the empty string.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(answer: str) -> list[str]:
    """Return an answer as the words that are compared."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 if the prediction has the words of one of the references in their order, else 0.0."""
    return max(float(words(prediction) == reference) for reference in _comparable(references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Return the best F1 of the prediction's words with those of a reference, each word as often as it occurs.

    An answer without words agrees only with another one.
    """
    return max(_f1(words(prediction), reference) for reference in _comparable(references))


def _comparable(references: Sequence[str]) -> list[list[str]]:
    """Return the words of each reference that has some; one empty list if there is none."""
    return [found for found in map(words, references) if found] or [[]]


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not (prediction and reference):
        return float(prediction == reference)
    common = (Counter(prediction) & Counter(reference)).total()
    # 2 P R / (P + R), where P and R divide `common` by the numbers of words.
    return 2 * common / (len(prediction) + len(reference))
