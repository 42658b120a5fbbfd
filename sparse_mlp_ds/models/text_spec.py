"""What a model of text is, as data: the fields that the `model:` section of a recipe may override."""

from typing import Literal

from pydantic import Field, model_validator

from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec, RoutedSpec, check_chunk


class TextSpec(ModelSpec):
    """What every model of text has."""

    vocabulary: int = Field(ge=8)
    """Number of token ids V, special ones included; that of the data's tokenizer."""
    length: int = Field(ge=4)
    """Tokens n of a row of text; that of the data's rows."""
    pool: Literal["cls", "mean"] = "cls"
    """What a row's features are: `cls` the output of its first token, `mean` the mean over all tokens."""

    @property
    def tokens(self) -> int:
        """Number of tokens n of a row."""
        return self.length

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row, [n]."""
        return (self.length,)


class GmlpTextSpec(TextSpec, RoutedSpec):
    """A gMLP for text, or an aMLP, which is a gMLP with tiny attention; with `moe_c` some of it is sparse."""

    family: Literal["gmlp_text", "amlp_text"]
    depth: int = Field(ge=1)
    """Number of blocks, dense and sparse."""
    hidden: int = Field(ge=2, multiple_of=2)
    """Channels F behind the first projection of a block (d_ffn in the paper)."""
    attention: int = Field(default=64, ge=1)
    """Size of the one attention head of an aMLP; a gMLP ignores it."""
    gate: Literal["split", "multiplicative", "additive", "linear"] = "split"
    """What a block does with its F channels z, of which f mixes the tokens: `split` z1 * f(z2) for the halves of the
    channels, `multiplicative` z * f(z), `additive` z + f(z), `linear` f(z) (gMLP's ablation)."""
    moe_c: MoESpec | None = None
    """Experts that mix channels: one more layer with a skip connection behind the blocks that `moe_placement` names, or
    the MoE_C of sparse blocks."""
    sparse_blocks: int = Field(default=0, ge=0)
    """Number of blocks at the end that are sparse blocks of Sparse-MLP without re-represent layers, made of `moe_s`
    and `moe_c`; then no other block has experts."""
    moe_s: MoESpec | None = None
    """Experts that mix tokens, in the sparse blocks; the items routed to them are channels, of length n, or chunks of
    channels."""

    def is_sparse(self, block: int) -> bool:
        """Return whether a block is a sparse block or has experts behind it; blocks are counted from 0."""
        return self.is_sparse_block(block) if self.sparse_blocks else super().is_sparse(block)

    def is_sparse_block(self, block: int) -> bool:
        """Return whether a block is a sparse block of Sparse-MLP; blocks are counted from 0."""
        return block >= self.depth - self.sparse_blocks

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The experts by mixing type."""
        if not self.sparse_blocks:
            return super().experts
        kinds = {"moe_s": self.moe_s, "moe_c": self.moe_c}
        return {kind: moe for kind, moe in kinds.items() if moe is not None and moe.experts}

    @model_validator(mode="after")
    def _complete(self) -> "GmlpTextSpec":
        if self.sparse_blocks and not (self.moe_s and self.moe_c):
            raise ValueError("sparse_blocks need moe_s and moe_c; give them")
        if self.moe_s and not self.sparse_blocks:
            raise ValueError("moe_s belongs to sparse blocks, of which there are none; set sparse_blocks")
        if self.sparse_blocks > self.depth:
            raise ValueError(f"sparse_blocks {self.sparse_blocks} exceeds depth {self.depth}; lower it")
        check_chunk(self.moe_s, self.width)
        return self


class BertSpec(TextSpec, RoutedSpec):
    """A BERT whose norms come before its layers; with `moe_c` some of its MLPs are experts."""

    family: Literal["bert"]
    depth: int = Field(ge=1)
    """Number of blocks, each of attention and an MLP."""
    heads: int = Field(ge=1)
    """Attention heads, each with width / heads channels."""
    channel_hidden: int = Field(ge=1)
    """Hidden width of the MLP."""
    moe_c: MoESpec | None = None
    """Experts that replace the MLP in the blocks that `moe_placement` names."""

    @model_validator(mode="after")
    def _whole_heads(self) -> "BertSpec":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}; change one of them")
        return self


class MixerTextSpec(TextSpec):
    """An MLP-Mixer for text."""

    family: Literal["mixer_text"]
    depth: int = Field(ge=1)
    """Number of blocks."""
    token_hidden: int = Field(ge=1)
    """Hidden width of the MLP that mixes tokens."""
    channel_hidden: int = Field(ge=1)
    """Hidden width of the MLP that mixes channels."""
