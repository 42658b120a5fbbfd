"""Small data sets of rows of tokens, real tars with an index, and the text models that fit them."""

from pathlib import Path

import numpy as np

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import questions
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.questions import Question, Window
from sparse_mlp_ds.data.text_format import Packing, TextFormat
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.text_spec import BertSpec, GmlpTextSpec, MixerTextSpec, TextSpec
from sparse_mlp_ds.shards import row_writer

LENGTH, VOCABULARY = 16, 40
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
CLASSES = ["even", "odd"]


def text_format(packing: Packing = "documents", length: int = LENGTH, vocabulary: int = VOCABULARY) -> TextFormat:
    """What the rows of a small data set are."""
    return TextFormat(length, vocabulary, "0" * 64, SPECIAL, packing)


def rows(count: int, seed: int = 0, length: int = LENGTH, vocabulary: int = VOCABULARY) -> np.ndarray:
    """`[CLS]`, tokens that count up from a random one, `[SEP]`: a language that is learnt fast. [count, n]."""
    start = np.random.default_rng(seed).integers(0, vocabulary - 5, (count, 1))
    tokens = 5 + (start + np.arange(length)) % (vocabulary - 5)
    tokens[:, 0], tokens[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    return tokens


def write(folder: Path, tokens: np.ndarray, labels: np.ndarray | None = None, text: TextFormat | None = None) -> Index:
    """Write rows [N, n] as two tars, and return their index. labels: [N]; without any, by the parity of token 1."""
    text = text or text_format()
    folder.mkdir(parents=True)
    collected = row_writer.RowFile(folder / "rows", text)
    for row, label in zip(tokens, tokens[:, 1] % 2 if labels is None else labels, strict=True):
        collected.add(row[None], int(label))
    layout = row_writer.Layout(per_shard=-(-len(tokens) // 2), seed=None)
    row_writer.write(folder, "rows", collected, layout, CLASSES, "", lambda done, total: None)
    collected.remove()
    return index_file.load(folder)


def write_questions(folder: Path, count: int) -> Index:
    """Write rows `[CLS] q [SEP] window [SEP]`; the answer, two tokens long, begins where q is."""
    generator, tokens, labels, asked = np.random.default_rng(count), [], [], []
    for number in range(count):
        window = generator.permutation(np.arange(5, VOCABULARY))[: LENGTH - 4]
        place = int(generator.integers(0, len(window) - 1))
        first = 3 + place
        tokens.append([SPECIAL["cls"], window[place], SPECIAL["sep"], *window, SPECIAL["sep"]])
        labels.append(first * LENGTH + first + 1)
        context = " ".join(f"w{token}" for token in window)
        ends = np.cumsum([len(f"w{token} ") for token in window]).tolist()
        offsets = list(zip([0, *ends[:-1]], [end - 1 for end in ends], strict=True))
        answer = f"w{window[place]} w{window[place + 1]}"
        asked.append(Question(str(number), "?", context, [answer], [Window(number, 3, offsets)]))
    index = write(folder, np.array(tokens), np.array(labels), text_format("spans"))
    questions.save(folder / "questions.jsonl", asked)
    return index


def spec(family: str = "gmlp_text", **fields) -> TextSpec:
    """A tiny model of these rows, with stochastic depth and dropout, experts where the family has them."""
    shape = {"vocabulary": VOCABULARY, "length": LENGTH, "width": 16, "drop_path": 0.3, "dropout": 0.1} | fields
    moe_c = MoESpec(experts=4, hidden=24, top_k=2)
    match family:
        case "gmlp_text" | "amlp_text":
            return GmlpTextSpec(family=family, depth=2, hidden=24, attention=8, **shape)
        case "sparse_gmlp_text":
            return GmlpTextSpec(family="gmlp_text", depth=2, hidden=24, moe_c=moe_c, moe_placement="tail1", **shape)
        case "sparse_blocks":
            moe_s = MoESpec(experts=4, hidden=16, top_k=2)
            return GmlpTextSpec(
                family="gmlp_text", depth=3, hidden=24, sparse_blocks=1, moe_s=moe_s, moe_c=moe_c, **shape
            )
        case "bert":
            return BertSpec(family="bert", depth=2, heads=2, channel_hidden=32, **shape)
        case "mixer_text":
            return MixerTextSpec(family="mixer_text", depth=2, token_hidden=8, channel_hidden=32, **shape)
    raise ValueError(family)
