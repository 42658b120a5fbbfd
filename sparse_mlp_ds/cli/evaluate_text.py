"""`sparse-mlp-ds evaluate` for models of text: perplexity, classes, or answers, over all rows of shards."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from sparse_mlp_ds.data.config import Data
    from sparse_mlp_ds.data.index import Index
    from sparse_mlp_ds.hub import SparseTextModel

_LARGEST = 1 << 27  # logits of masked tokens in a forward pass


def run(args: argparse.Namespace, model: "SparseTextModel", shards: str) -> None:
    """Measure a model on the rows of a data set, and print the figures. Raises UserError."""
    from sparse_mlp_ds.data.config import Data, Source
    from sparse_mlp_ds.data.index import join
    from sparse_mlp_ds.data.sources import open_sources, remarks

    task, spec = model.config.task, model.config.spec
    if task == "features":
        raise UserError(f"{args.model}: a model without a head; fine-tune it first")
    labels = {"masked": None, "classes": len(model.classes), "spans": spec.length**2}[task]
    data = Data(train=(Source(path=shards),), classes=labels, workers=args.workers)
    index = join(open_sources(data, data.train))
    check_rows(index, model, args.model)
    for remark in remarks(data.train):
        print(f"WARNING: {remark}", file=sys.stderr)
    with redirect_stdout(sys.stderr):  # which names the rows that are not counted
        metrics, content = {"masked": _masked, "classes": _classes, "spans": _spans}[task](args, model, index, data)
    if args.json:
        print(json.dumps(metrics | content, indent=1))
        return
    names = {"masked_top1": "masked top-1", "top1": "top-1", "top5": "top-5", "ece": "calibration error"}
    names |= {"exact_match": "exact match", "f1": "F1"}
    shares = [f"{name} {100 * metrics[key]:.2f} %" for key, name in names.items() if key in metrics]
    perplexity = [f"perplexity {metrics['perplexity']:.2f}"] if "perplexity" in metrics else []
    print(f"{metrics['sequences']} sequences: {', '.join(perplexity + shares)}")


def check_rows(index: "Index", model: "SparseTextModel", name: str) -> None:
    """Raise UserError unless a data set holds rows that a model takes. name: of the model, for messages."""
    if index.text is None:
        raise UserError(f"{index.source}: holds images, and {name} takes text; give a text data set")
    config = model.config
    for key in ("length", "vocabulary"):
        if (given := getattr(index.text, key)) != (needed := getattr(config.spec, key)):
            raise UserError(f"{index.source}: has {key} {given}, the model {needed}; make the data again for the model")
    if config.text and config.text.tokenizer != index.text.tokenizer:
        raise UserError(
            f"{index.source}: was made with a different tokenizer than the data that {name} was trained on; make it "
            "again with `sparse-mlp-ds shards make` and --tokenizer FILE"
        )


def _masked(
    args: argparse.Namespace, model: "SparseTextModel", index: "Index", data: "Data"
) -> tuple[dict[str, float], dict[str, Any]]:
    from sparse_mlp_ds.train.evaluate_text import masked_outcome

    logits = model.config.spec.length * model.config.spec.vocabulary // 5
    batch = max(min(args.batch_size, _LARGEST // max(logits, 1)), 1)
    outcome = masked_outcome(model.restored, index, data, batch)
    return outcome.metrics(), outcome.content()


def _classes(
    args: argparse.Namespace, model: "SparseTextModel", index: "Index", data: "Data"
) -> tuple[dict[str, float], dict[str, Any]]:
    from sparse_mlp_ds.data.class_names import ClassList, agree
    from sparse_mlp_ds.train.evaluate import outcomes

    lists = [ClassList(args.model, model.classes), ClassList(index.source, index.classes)]
    for remark in agree(lists, len(model.classes), f"{args.model} knows {len(model.classes)} classes")[1]:
        print(f"WARNING: {remark}", file=sys.stderr)
    (outcome,) = outcomes(lambda tokens: model(tokens).float(), index, data, None, args.batch_size)
    return outcome.metrics(), {"classes": list(model.classes), "top1_by_class": outcome.per_class()}


def _spans(
    args: argparse.Namespace, model: "SparseTextModel", index: "Index", data: "Data"
) -> tuple[dict[str, float], dict[str, Any]]:
    from sparse_mlp_ds.data import questions
    from sparse_mlp_ds.data.cache import is_remote
    from sparse_mlp_ds.hub.text_answers import LONGEST
    from sparse_mlp_ds.train.evaluate_text import answer_outcome

    if is_remote(index.source):
        raise UserError(f"{index.source}: questions are read from a local folder; copy the data set to one")
    asked = questions.load(Path(index.source), len(index))
    outcome = answer_outcome(model, index, asked, data, args.batch_size, LONGEST)
    return outcome.metrics(), outcome.content()
