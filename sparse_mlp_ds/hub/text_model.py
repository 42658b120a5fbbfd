"""A trained model of text as a torch module that can be loaded, run, saved and shared."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparse_mlp_ds.checkpoints.model_weights import OUTPUT_BIAS
from sparse_mlp_ds.data.text_format import TOKENIZER, TextFormat
from sparse_mlp_ds.data.tokenizer import PIECES, Tokenizer
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.base_model import TrainedModel
from sparse_mlp_ds.hub.config import TextConfig, of_text
from sparse_mlp_ds.hub.pretrained import find
from sparse_mlp_ds.hub.save import write_export
from sparse_mlp_ds.hub.text_answers import Answer, find_answer
from sparse_mlp_ds.shards import packing

MASK = PIECES["mask"][0]
"""What stands for a hidden token in a text that `preprocess` is given."""


class SparseTextModel(TrainedModel):
    """A masked language model, a classifier of texts or a model that finds answers, with all experts in one process.

    Every pass is deterministic, as in evaluation: a row's result does not depend on the other rows of its batch.
    """

    config: TextConfig

    def __init__(
        self,
        config: TextConfig,
        capacity_factor: float | None = None,
        priority: str = "importance",
        tokenizer: bytes | None = None,
    ):
        """Build the model without initialising its weights; `from_pretrained` also loads them.

        Args:
            config: The model as data.
            capacity_factor: Items of a row that an expert takes at most, relative to an even share of them; those
                beyond it are dropped. None drops nothing.
            priority: Which items an expert takes first if it cannot take all: `importance` for those with the largest
                gate weights, `position` for the first ones.
            tokenizer: Content of the tokenizer's file; None for a model that is given tokens only.
        """
        super().__init__(config, capacity_factor, priority)
        masked = config.task == "masked"
        self.output_bias = nn.Parameter(torch.zeros(config.spec.vocabulary)) if masked else None
        self._tokenizer_file = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        capacity_factor: float | None = None,
        priority: str = "importance",
        best: bool = False,
        tokenizer: str | Path | None = None,
    ) -> "SparseTextModel":
        """Load a model from a folder or from the Hugging Face Hub.

        Args:
            path_or_repo: The folder of an export, a run or a checkpoint, or a repository OWNER/NAME of the Hub. A
                folder of that name comes first.
            revision: Branch, tag or commit of the repository; None for the newest commit.
            token: Access token of the Hub.
            capacity_factor: See the constructor.
            priority: See the constructor.
            best: Of a run, take the checkpoint with the best validation instead of the newest one.
            tokenizer: The tokenizer's file of a run or checkpoint that has none beside it.

        Raises UserError. Issues a RuntimeWarning for each newer checkpoint of a run that is damaged and not used.
        """
        loaded = find(path_or_repo, revision, token, best, tokenizer)
        config = of_text(loaded.config, path_or_repo)
        return cls.from_weights(config, loaded.weights, loaded.tokenizer, capacity_factor, priority)

    @classmethod
    def from_weights(
        cls,
        config: TextConfig,
        weights: dict[str, Tensor],
        tokenizer: bytes | None = None,
        capacity_factor: float | None = None,
        priority: str = "importance",
    ) -> "SparseTextModel":
        """Build a model with the given weights.

        Args:
            config: The model as data.
            weights: All weights of the model under its own names; see `hub.validate.check_tensors`.
            tokenizer: See the constructor.
            capacity_factor: See the constructor.
            priority: See the constructor.
        """
        model = cls(config, capacity_factor, priority, tokenizer)
        model.fill(weights)
        return model

    @property
    def text(self) -> TextFormat:
        """What the model's rows are. Raises UserError for a model that was made without a tokenizer."""
        if self.config.text is None:
            raise UserError(
                f"{self.config.name}: was made without a tokenizer; give it one, or tokens instead of texts"
            )
        return self.config.text.format

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Makes tokens from texts, and texts from tokens. Raises UserError for a model without one."""
        if self._tokenizer_file is None:
            raise UserError(
                f"{self.config.name}: has no {TOKENIZER} beside it; give the file of its data as `tokenizer`, on the "
                "command line with --tokenizer FILE"
            )
        opened = Tokenizer(Path(TOKENIZER), self._tokenizer_file)
        if (opened.vocabulary, opened.special) != (self.text.vocabulary, self.text.special):
            raise UserError(f"{TOKENIZER}: its tokens are not those of {self.config.name}; write the export again")
        return opened

    def reset_head(self, classes: int | Sequence[str]) -> None:
        """Replace head and output layer by a new head of zeros for classes of rows, as a stage of fine-tuning does.

        classes: Names of the classes, or their number; none leaves out the head, so that the model returns features.
        """
        names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        device = self.device
        self.config = self.config.model_copy(update={"classes": names, "task": "classes" if names else "features"})
        self.output_bias = None
        self.backbone.reset_head(len(names))
        self.backbone.head.to(device)

    def own_weights(self) -> dict[str, Tensor]:
        """Return all weights under the names that an export has them by; they share memory with the model."""
        bias = {} if self.output_bias is None else {OUTPUT_BIAS: self.output_bias.detach()}
        return super().own_weights() | bias

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the model is for, by `config.task`.

        tokens: [B, n] int64, as `preprocess` returns them.

        Returns `masked`: logits [B, n, V] over the vocabulary. `classes`: logits [B, classes]. `spans`: [B, n, 2], the
        logits of being an answer's first token and its last one. `features`: [B, C]. Raises UserError for rows of a
        different length, or tokens that the model does not have.
        """
        self._check(tokens)
        if self.config.task in ("classes", "features"):
            return self.backbone(tokens)[0]
        hidden = self.backbone.forward_tokens(tokens)[0]
        if self.output_bias is None:
            return self.backbone.forward_head(hidden)
        return (self.backbone.tied_logits(hidden.flatten(0, 1)) + self.output_bias).unflatten(0, tokens.shape)

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Return pooled features [B, C]. tokens: [B, n], as `preprocess` returns them. Raises as `forward` does."""
        self._check(tokens)
        return self.backbone.forward_features(tokens)[0]

    def restored(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return the logits [B, m, V] of a masked language model at some places only, which needs less memory.

        tokens: [B, n]. places: [B, m] positions in each row.
        """
        assert self.output_bias is not None
        hidden = self.backbone.forward_tokens(tokens)[0]
        chosen = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
        return (self.backbone.tied_logits(chosen.flatten(0, 1)) + self.output_bias).unflatten(0, places.shape)

    def preprocess(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Return texts as rows of tokens [B, n] on the model's device: `[CLS] text [SEP]`, and padding.

        What does not fit is cut off at the end, of a pair from the longer text first. The string `[MASK]` becomes the
        token of a hidden place; a space in front of it belongs to the hidden token, as tokens of words begin with one.

        Args:
            texts: The texts.
            pairs: The second text of each row, `[CLS] text [SEP] pair [SEP]`; None for single texts.

        Raises UserError if the model has no tokenizer, or if there are more texts of one kind than of the other.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise UserError("preprocess: give a list of texts, also where there is only one")
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"preprocess: {len(texts)} texts and {len(pairs)} second texts; give as many of each")
        seconds = [None] * len(texts) if pairs is None else [self._tokens(pair) for pair in pairs]
        rows = [
            packing.one_row(self.text, self._tokens(text), pair)[0] for text, pair in zip(texts, seconds, strict=True)
        ]
        batch = np.concatenate(rows) if rows else np.empty((0, self.text.length))
        return torch.from_numpy(batch.astype(np.int64)).to(self.device)

    def answer(self, question: str, context: str) -> Answer:
        """Return the part of a context, a text of any length, that answers a question best.

        Raises UserError for a model that was not fine-tuned for answers, and where a text is empty.
        """
        if self.config.task != "spans":
            raise UserError(f"{self.config.name}: was not trained to find answers; fine-tune it with finetune_span")
        forward = lambda rows: self(rows.to(self.device))  # noqa: E731
        return find_answer(forward, self.tokenizer, self.text, question, context)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json, tokenizer.model and README.md into a folder, as an export has them.

        Returns the folder. Raises UserError if it holds something else, cannot be written, or if the model has no
        tokenizer.
        """
        return write_export(Path(folder), self.config, self.own_weights(), self._tokenizer_file)

    def _tokens(self, text: str) -> np.ndarray:
        """Return the tokens of a text in which `MASK` stands for hidden ones, without special tokens else."""
        tokens: list[int] = []
        parts = text.split(MASK)
        for part in parts[:-1]:
            tokens += [*self.tokenizer.encode(part.removesuffix(" ")), self.text.special["mask"]]
        return np.array(tokens + self.tokenizer.encode(parts[-1]), dtype=np.int64)

    def _check(self, tokens: Tensor) -> None:
        length, vocabulary = self.config.spec.length, self.config.spec.vocabulary
        if torch.compiler.is_exporting():
            return
        if tokens.ndim != 2 or tokens.shape[1] != length or tokens.dtype != torch.int64:
            raise UserError(
                f"{self.config.name} takes int64 rows of {length} tokens, [B, {length}], not {tokens.dtype} of shape "
                f"{list(tokens.shape)}; make them with preprocess()"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise UserError(f"{self.config.name} has tokens 0 to {vocabulary - 1}, and there are others in the rows")
