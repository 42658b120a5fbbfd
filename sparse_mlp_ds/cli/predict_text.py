"""`sparse-mlp-ds predict` for models of text: hidden tokens, classes of texts, and answers to questions."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.config.arguments import as_path
from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from sparse_mlp_ds.hub import AnyModel, SparseTextModel

_TEXTS_PER_PASS = 32


def add_to(predict: argparse.ArgumentParser) -> None:
    """Add the flags of models of text to the parser of `predict`."""
    flags = {
        "--text": "text, with [MASK] in place of the tokens that a masked language model is to restore; may be given "
        "several times",
        "--pair": "second text of a pair, for a model that was trained on pairs; once for each --text",
        "--question": "question to a model of answers; may be given several times",
        "--context": "text of any length that may answer the question: once for all questions, or once for each",
    }
    for flag, meaning in flags.items():
        predict.add_argument(flag, action="append", default=[], metavar="TEXT", help=meaning)
    predict.add_argument(
        "--tokenizer",
        type=as_path,
        metavar="FILE",
        help="tokenizer.model of the data, for a run or checkpoint of text that has none beside it",
    )


def is_asked(args: argparse.Namespace) -> bool:
    """Return whether the command line has flags of models of text."""
    return bool(args.text or args.pair or args.question or args.context)


def run(args: argparse.Namespace, model: "AnyModel") -> None:
    """Print what a model finds in the texts of the command line. Raises UserError."""
    from sparse_mlp_ds.hub.config import of_text
    from sparse_mlp_ds.hub.text_model import SparseTextModel

    task = of_text(model.config, args.model).task
    assert isinstance(model, SparseTextModel)
    _check(args, task)
    problems: list[str] = []
    if task == "spans":
        answers = _answers(args, model)
    elif task == "masked":
        answers = [entry for text in args.text for entry in _restored(model, text, args.top, problems)]
    else:
        answers = _classes(args, model)
    if args.json:
        print(json.dumps(answers, indent=1))
    elif answers:
        _print(answers, task)
    if problems:
        raise UserError("\n".join(problems))


def _check(args: argparse.Namespace, task: str) -> None:
    """Raise UserError unless the command line has what the model needs, and nothing else."""
    if task == "features":
        raise UserError(f"{args.model}: a model without a head; fine-tune it first")
    needed, beside = ("--question", "--context") if task == "spans" else ("--text", "--pair")
    given = {"--text": args.text, "--pair": args.pair, "--question": args.question, "--context": args.context}
    if args.images:
        raise UserError(f"{args.model}: takes text; give {needed} instead of images")
    if not given[needed] or (task == "spans" and not args.context):
        raise UserError(f"{args.model}: give {'--question and --context' if task == 'spans' else needed}")
    allowed = {needed} if task == "masked" else {needed, beside}
    if strange := [flag for flag, texts in given.items() if texts and flag not in allowed]:
        raise UserError(f"{args.model}: has no use for {strange[0]}; leave it out")
    if task == "classes" and args.pair and len(args.pair) != len(args.text):
        raise UserError(f"predict: {len(args.text)} --text and {len(args.pair)} --pair; give one --pair for each text")
    if task == "spans" and len(args.context) not in (1, len(args.question)):
        raise UserError("predict: give one --context for all questions, or one for each")


def _restored(model: "SparseTextModel", text: str, top: int, problems: list[str]) -> list[dict[str, Any]]:
    """Return the most likely tokens at each hidden place of a text; a line is added to `problems` if there is none."""
    import torch

    from sparse_mlp_ds.hub.text_model import MASK

    tokens = model.preprocess([text])
    places = (tokens[0] == model.text.special["mask"]).nonzero().flatten()
    wanted, short = text.count(MASK), text[:60]
    if not wanted:
        problems.append(f"--text {short!a}: has no {MASK}; write one in place of each token to restore")
        return []
    if len(places) < wanted:
        problems.append(
            f"--text {short!a}: longer than {model.text.length} tokens, and a {MASK} is cut off; shorten it"
        )
        return []
    with torch.no_grad():
        probabilities = model.restored(tokens, places[None])[0].float().softmax(dim=1)
    likeliest = probabilities.topk(min(top, model.text.vocabulary), dim=1)
    found = [
        [
            {"token": token, "piece": model.tokenizer.piece(token), "probability": value}
            for value, token in zip(values, ids, strict=True)
        ]
        for values, ids in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
    ]
    return [{"text": text, "masks": found}]


def _classes(args: argparse.Namespace, model: "SparseTextModel") -> list[dict[str, Any]]:
    """Return the most likely classes of each text or pair."""
    import torch

    answers: list[dict[str, Any]] = []
    for first in range(0, len(args.text), _TEXTS_PER_PASS):
        some = slice(first, first + _TEXTS_PER_PASS)
        texts, pairs = args.text[some], args.pair[some] or None
        with torch.no_grad():
            probabilities = model(model.preprocess(texts, pairs)).float().softmax(dim=1)
        likeliest = probabilities.topk(min(args.top, len(model.classes)), dim=1)
        rows = zip(texts, pairs or texts, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        for text, pair, values, numbers in rows:
            classes = [
                {"class": number, "name": model.classes[number], "probability": value}
                for value, number in zip(values, numbers, strict=True)
            ]
            answers.append({"text": text} | ({"pair": pair} if pairs else {}) | {"classes": classes})
    return answers


def _answers(args: argparse.Namespace, model: "SparseTextModel") -> list[dict[str, Any]]:
    """Return the answer to each question."""
    contexts = args.context * len(args.question) if len(args.context) == 1 else args.context
    answers = []
    for question, context in zip(args.question, contexts, strict=True):
        found = model.answer(question, context)
        answers.append(
            {
                "question": question,
                "answer": found.text,
                "start": found.start,
                "end": found.end,
                "score": found.score,
                "no_answer_score": found.no_answer,
            }
        )
    return answers


def _print(answers: list[dict[str, Any]], task: str) -> None:
    """Print a table of what was found."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = {
        "masked": ("text", "mask", "token", "probability"),
        "classes": ("text", "class", "name", "probability"),
        "spans": ("question", "answer", "score", "score of no answer"),
    }[task]
    table = Table()
    for column in columns:
        numbers = column in ("mask", "class", "probability") or column.startswith("score")
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for answer in answers:
        for cells in _rows(answer, task):
            table.add_row(*(Text(cell) for cell in cells))
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _rows(answer: dict[str, Any], task: str) -> list[tuple[str, ...]]:
    """Return the rows of a table that one answer fills."""
    if task == "spans":
        return [(answer["question"], answer["answer"], f"{answer['score']:.3f}", f"{answer['no_answer_score']:.3f}")]
    if task == "classes":
        texts = " | ".join(answer[key] for key in ("text", "pair") if key in answer)
        found = [(str(one["class"]), one["name"], one["probability"]) for one in answer["classes"]]
    else:
        texts = answer["text"]
        found = [
            (str(number) if rank == 0 else "", one["piece"], one["probability"])
            for number, mask in enumerate(answer["masks"], 1)
            for rank, one in enumerate(mask)
        ]
    return [
        (texts if n == 0 else "", *cells, f"{100 * probability:.2f} %") for n, (*cells, probability) in enumerate(found)
    ]
