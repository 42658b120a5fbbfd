"""The frame of every model here: a stack of equally shaped blocks over tokens, with what comes before and after.

Tokens are patches of an image, or pieces of words.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_mlp_ds.models.layers import LN_EPS, DropPath, Factors, path_factors
from sparse_mlp_ds.moe.stats import Reports

HEAD = "head"
"""What the names of all tensors of a classifier's head begin with: `head`, `head_dist`, `head_representation`."""


class Backbone(nn.Module):
    """Stem, blocks, LayerNorm, mean over tokens, linear head (MLP-Mixer, figure 1).

    The stem turns inputs into tokens: images [B, 3, H, W] into projected patches, rows of text [B, n] into embeddings.

    With `MixerBlock`s this is an MLP-Mixer, with `SparseBlock`s among them a Sparse-MLP, with `GmlpBlock`s a gMLP, with
    `ResMlpBlock`s a ResMLP; `vit.VisionTransformer` adds positions and a class token, `language.TextBackbone` a tied
    output layer.
    """

    def __init__(
        self,
        stem: nn.Module,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        checkpoint_blocks: bool = False,
        norm: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=LN_EPS),
        stem_name: str = "patch_embed",
    ):
        """Build the frame around the blocks.

        Args:
            stem: module, inputs -> [B, S, C].
            width: channels C.
            blocks: modules (x [B, S, C], keys [B] or None, factors of the block's `DropPath`s) -> (x of the same
                shape, reports of MoE layers).
            classes: outputs of the head; 0 builds no head.
            checkpoint_blocks: keep only each block's input, and compute the block again in the backward pass.
            norm: builds the norm behind the last block, of C channels.
            stem_name: name of the stem, with which the names of its tensors begin.
        """
        super().__init__()
        self.width = width
        self.checkpoint_blocks = checkpoint_blocks
        self.stem_name = stem_name
        self.add_module(stem_name, stem)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(width)
        self._paths = [
            (number, place, path)
            for number, block in enumerate(blocks)
            for place, path in enumerate(child for child in block.children() if isinstance(child, DropPath))
            if path.rate
        ]
        self.reset_head(classes)

    def reset_head(self, classes: int) -> None:
        """Replace the head by a new one of zeros (MLP-Mixer's initialisation); for 0 classes, remove it."""
        self.head = nn.Linear(self.width, classes) if classes else nn.Identity()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    @property
    def stem(self) -> nn.Module:
        """The module that turns inputs into tokens: `patch_embed` of images, `token_embed` of text."""
        return self.get_submodule(self.stem_name)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the input of the first block [B, S, C], of images [B, 3, H, W] or rows of text [B, n]."""
        return self.stem(inputs)

    def pool(self, x: Tensor) -> Tensor:
        """Return features [B, C] of the normalised tokens [B, S, C]."""
        return x.mean(dim=1)

    def forward_tokens(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return the normalised output of the last block [B, S, C] and the MoE layers' reports.

        For the arguments, see `forward_features`.
        """
        x = self.embed(inputs)
        reports: Reports = {}
        random = zip(self.blocks, self.block_keys(keys), self._factors(keys), strict=True)
        for index, (block, block_keys, factors) in enumerate(random):
            x, block_reports = self._run(block, x, block_keys, factors)
            reports |= {f"{index}.{name}": report for name, report in block_reports.items()}
        return self.norm(x), reports

    def forward_blocks(self, inputs: Tensor, keys: Tensor | None = None, last: int | None = None) -> list[Tensor]:
        """Return the output [B, S, C] of each block, not normalised.

        last: number of the last block that is computed; None computes all. For the other arguments, see
        `forward_features`.
        """
        random = list(zip(self.blocks, self.block_keys(keys), self._factors(keys), strict=True))
        outputs = [self.embed(inputs)]
        for block, block_keys, factors in random if last is None else random[: last + 1]:
            outputs.append(self._run(block, outputs[-1], block_keys, factors)[0])
        return outputs[1:]

    def tied_logits(self, hidden: Tensor) -> Tensor:
        """Return logits over the vocabulary [M, V] of tokens' outputs [M, C]: their products with the embeddings.

        Only models of text have it. The output layer's bias is not among the model's tensors.
        """
        return self.stem(hidden, tied=True)

    def forward_features(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return pooled features [B, C] and the MoE layers' reports.

        inputs: [B, 3, H, W] normalised images, or [B, n] int64 tokens. keys: [B] random keys of the samples in
        training, None in evaluation.
        """
        x, reports = self.forward_tokens(inputs, keys)
        return self.pool(x), reports

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits [B, classes] from features [B, C]."""
        return self.head(features)

    def forward(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return logits [B, classes] and the MoE layers' reports; see `forward_features` for the arguments."""
        features, reports = self.forward_features(inputs, keys)
        return self.forward_head(features), reports

    def block_keys(self, keys: Tensor | None) -> Sequence[Tensor | None]:
        """Return the keys [B] that each block draws with, of the samples' keys [B]."""
        return [keys] * len(self.blocks)

    def path_keys(self, keys: Tensor) -> Tensor:
        """Return the keys that the blocks' `DropPath`s draw with, [B] or [paths, B], of the samples' keys [B]."""
        return keys

    def _factors(self, keys: Tensor | None) -> Sequence[Factors]:
        """Return the factors of each block's `DropPath`s."""
        factors: list[list[Tensor | None]] = [[None, None] for _ in self.blocks]
        if keys is not None and self._paths:
            drawn = path_factors([path for *_, path in self._paths], self.path_keys(keys))
            for (number, place, _), factor in zip(self._paths, drawn, strict=True):
                factors[number][place] = factor
        return factors

    def _run(self, block: nn.Module, x: Tensor, keys: Tensor | None, factors: Factors) -> tuple[Tensor, Reports]:
        if not self.checkpoint_blocks:
            return block(x, keys, factors)
        # All random draws are functions of the keys, so the second run repeats the first without a saved generator
        # state. The reports returned here are those of the first run, whose graph leads through the second.
        return checkpoint(block, x, keys, factors, use_reentrant=False, preserve_rng_state=False)
