"""Models of text: rows of tokens [B, n] instead of images, and an output layer over the vocabulary.

gMLP, aMLP and MLP-Mixer know where a token is by the weights that mix tokens; only BERT has positions (gMLP 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import lecun_normal
from sparse_mlp_ds.moe.stats import Reports

STEM = "token_embed"
"""Name of the embedding, by which weights of a model of text are known."""


class TokenEmbed(nn.Module):
    """The embedding of V tokens, weight [V, C], which is the output layer's matrix too (Press and Wolf, 2017).

    Both uses go through `forward`, because ZeRO-3 collects a layer's weights when it is called.
    """

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, x: Tensor, tied: bool = False) -> Tensor:
        """Return the vectors [B, n, C] of tokens [B, n] int64; tied: the logits [*, V] of vectors [*, C]."""
        return nn.functional.linear(x, self.weight) if tied else nn.functional.embedding(x, self.weight)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill as BERT's code does; logits are then so small that the untrained loss is near ln V."""
        bert_normal(name, parameter, generator)


class TextBackbone(Backbone):
    """A `Backbone` over rows of tokens, without positions."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        checkpoint_blocks: bool = False,
        pool: str = "cls",
    ):
        """Build the frame around the blocks.

        Args:
            vocabulary: number of token ids V.
            width: channels C.
            blocks: see `Backbone`.
            classes: outputs of the head; 0 builds no head.
            checkpoint_blocks: keep only each block's input, and compute the block again in the backward pass.
            pool: what a row's features are, `cls` or `mean`, see `TextSpec.pool`.
        """
        stem = TokenEmbed(vocabulary, width)
        super().__init__(stem, width, blocks, classes, checkpoint_blocks, stem_name=STEM)
        self.pools_mean = pool == "mean"

    def pool(self, x: Tensor) -> Tensor:
        """Return features [B, C] of the normalised tokens [B, n, C]: the first one, or the mean over all."""
        return super().pool(x) if self.pools_mean else x[:, 0]


class Bert(TextBackbone):
    """A BERT (Devlin et al., 2019) with learned positions, whose norms come before its layers.

    It has no types of segments and no layer in front of the output; gMLP's paper counts its parameters so.
    """

    def __init__(
        self,
        length: int,
        vocabulary: int,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        checkpoint_blocks: bool = False,
        pool: str = "cls",
    ):
        """Build the frame around the `TransformerBlock`s. length: tokens n of a row; for the rest see the base."""
        super().__init__(vocabulary, width, blocks, classes, checkpoint_blocks, pool)
        self.positions = nn.Parameter(torch.zeros(length, width))

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the tokens' vectors with positions: [B, n] -> [B, n, C]."""
        return super().embed(inputs) + self.positions

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill as BERT's code does, routers with LeCun-normal as in V-MoE."""
        (lecun_normal if name.endswith("router.weight") else bert_normal)(name, parameter, generator)


class BertAttention(Attention):
    """Attention whose weights start as BERT's."""

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill as BERT's code does."""
        bert_normal(name, parameter, generator)


def bert_normal(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Fill from N(0, 0.02^2) truncated at two deviations (BERT's code), what is not random as everywhere."""
    if parameter.ndim == 1 or name.endswith("head.weight"):
        lecun_normal(name, parameter, generator)
    else:
        nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=generator)


class MaskedModel(nn.Module):
    """A text model under the name `backbone`, as in other stages, and the bias of its output layer.

    The layer's matrix is that of the token embedding, and there is no transform before it.
    """

    def __init__(self, backbone: Backbone, vocabulary: int):
        """vocabulary: number of different tokens, V."""
        super().__init__()
        self.backbone = backbone
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, inputs: Tensor, places: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return logits [B, m, V] of the tokens at some places, and the MoE layers' reports.

        Only these places pass the output layer: 15 % of its work and memory.

        Args:
            inputs: tokens [B, n].
            places: [B, m] positions in each sequence.
            keys: [B] random keys in training; None in evaluation.
        """
        hidden, reports = self.backbone.forward_tokens(inputs, keys)
        chosen = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
        return (self.backbone.tied_logits(chosen.flatten(0, 1)) + self.bias).unflatten(0, places.shape), reports
