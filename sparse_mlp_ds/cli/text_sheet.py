"""The first rows of tokens of an epoch as text, with the masked places of masked language modelling marked."""

import html
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import MaskedLM, TrainingStage
from sparse_mlp_ds.data import few_labels, sources
from sparse_mlp_ds.data.cache import is_remote
from sparse_mlp_ds.data.index import UNLABELLED, Index, join
from sparse_mlp_ds.data.loader import Batch, ShardDataset, load
from sparse_mlp_ds.data.masking import IGNORED, mask
from sparse_mlp_ds.data.order import BatchIndices
from sparse_mlp_ds.data.text_format import TOKENIZER, TextFormat
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError

_STYLE = (
    "body{max-width:60em;margin:2em auto;font:16px/1.5 sans-serif}"
    "mark{background:#fe8}del{color:#888}p{white-space:pre-wrap}"
)


@dataclass(frozen=True)
class Piece:
    """A part of a row."""

    text: str
    """What the row holds there."""
    shown: str | None = None
    """What the model sees in place of a token that it is to restore; None for all other text."""


@dataclass(frozen=True)
class Row:
    """A row of tokens as text."""

    title: str
    """Its number, class and key."""
    pieces: list[Piece]
    """Its parts, in order."""

    def plain(self) -> str:
        """Return the row as plain text: `{token>seen}` is a masked place, `{token}` one whose token stays."""
        return f"{self.title}\n{''.join(map(_plain, self.pieces))}\n"

    def page(self) -> str:
        """Return the row as HTML."""
        return f"<h2>{html.escape(self.title)}</h2>\n<p>{''.join(map(_marked, self.pieces))}</p>\n"


def rows(recipe: Recipe, stage: TrainingStage, count: int, epoch: int) -> list[Row]:
    """Return the first rows of an epoch as the network gets them.

    Args:
        recipe: The recipe, whose data exist.
        stage: One of its training stages; if it masks tokens, the masked places are marked.
        count: Number of rows.
        epoch: Epoch of the stage.

    Raises UserError if the data or their tokenizer cannot be read, or if the data fill no batch.
    """
    found = sources.open_sources(recipe.data, recipe.data.train)
    indexes = few_labels.part(found, stage, recipe.train.seed)
    index = join(indexes)
    if index.text is None:
        raise UserError(f"data: {index.source} holds images, not rows of tokens")
    tokenizer = _tokenizer(recipe)
    order = sources.training_order(recipe.data, indexes, stage.batch_size, recipe.train.seed)
    if not order.steps_per_epoch:
        raise UserError(f"batch_size {order.batch_size} exceeds the {order.samples} rows of data.train; lower it")
    indices = order.batch_indices(epoch * order.steps_per_epoch, 0, min(count, order.batch_size))
    dataset = ShardDataset(index, None, None, seed=recipe.train.seed, order=order, cache=sources.cache(recipe.data))
    (batch,) = load(dataset, [indices], 0)
    shown = _masked(batch, stage, recipe.train.seed, index.text)
    return [
        Row(_title(index, indices, batch, number), _pieces(tokens, seen, index.text, tokenizer))
        for number, (tokens, seen) in enumerate(zip(batch.inputs.tolist(), shown, strict=True))
    ]


def page(found: list[Row], title: str) -> str:
    """Return rows as a page of HTML. title: of the page."""
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    legend = "<p>Tokens to be restored are marked; one that is struck out is replaced by what stands behind it.</p>"
    return f"{head}\n<h1>{html.escape(title)}</h1>\n{legend}\n{''.join(row.page() for row in found)}"


def _masked(batch: Batch, stage: TrainingStage, seed: int, text: TextFormat) -> list[dict[int, int]]:
    """Return for each row of a batch the places to be restored, and what the model sees there."""
    if not isinstance(stage, MaskedLM):
        return [{} for _ in batch.inputs]
    # The keys of training, `train.text_classification.text_keys`, whose import would take DeepSpeed's time.
    masked = mask(batch.inputs, rng.sample_keys(seed, batch.numbers, "text"), text, stage.mask_share)
    chosen = masked.targets != IGNORED
    return [
        {place: int(inputs[place]) for place in places[real].tolist()}
        for inputs, places, real in zip(masked.inputs, masked.places, chosen, strict=True)
    ]


def _title(index: Index, indices: BatchIndices, batch: Batch, number: int) -> str:
    shard, position = index.locate(int(indices.samples[number]))
    label, text = int(batch.labels[number]), index.text
    named = text is not None and text.packing != "spans" and label != UNLABELLED
    name = (index.classes[label] if label < len(index.classes) else str(label)) if named else ""
    return " · ".join(part for part in (f"row {number + 1}", name, shard.key(position)) if part)


def _pieces(tokens: list[int], seen: dict[int, int], text: TextFormat, tokenizer: Tokenizer) -> list[Piece]:
    """Return a row's parts; padding is left out.

    Args:
        tokens: The row.
        seen: The places to be restored, and what the model sees there.
        text: What the row is.
        tokenizer: That of the data.
    """
    pieces, run = list[Piece](), list[int]()

    def end() -> None:
        if run:
            pieces.append(Piece(tokenizer.decode(run)))
            run.clear()

    special = set(text.special.values())
    for place, token in enumerate(tokens):
        if token == text.special["pad"]:
            continue
        if place in seen or token in special:
            end()
            here = _name(token, tokenizer)
            pieces.append(Piece(here, _name(seen[place], tokenizer) if place in seen else None))
        else:
            run.append(token)
    end()
    return pieces


def _name(token: int, tokenizer: Tokenizer) -> str:
    """Return a single token as text that can be read."""
    return tokenizer.piece(token).replace("▁", " ").replace("\n", "\\n")


def _plain(piece: Piece) -> str:
    if piece.shown is None:
        return piece.text
    return f"{{{piece.text}}}" if piece.shown == piece.text else f"{{{piece.text}>{piece.shown}}}"


def _marked(piece: Piece) -> str:
    text = html.escape(piece.text)
    if piece.shown is None:
        return text
    return (
        f"<mark>{text}</mark>"
        if piece.shown == piece.text
        else f"<mark><del>{text}</del>{html.escape(piece.shown)}</mark>"
    )


def _tokenizer(recipe: Recipe) -> Tokenizer:
    """Return the tokenizer of a recipe's training data. Raises UserError."""
    place = sources.index_path(recipe.data.train[0])
    if place is None or is_remote(place):
        raise UserError(
            f"data.train: {recipe.data.train[0].path} is remote; put index.json and {TOKENIZER} beside each other here"
        )
    return Tokenizer(Path(place).with_name(TOKENIZER))
