"""What a model is, as data: the fields that the `model:` section of a recipe may override."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec, RoutedSpec, check_chunk
from sparse_mlp_ds.models.text_spec import BertSpec, GmlpTextSpec, MixerTextSpec


class PatchSpec(ModelSpec):
    """What every model over patches of images has."""

    image_size: int = Field(ge=1)
    """Side of the square input image, in pixels."""
    patch_size: int = Field(ge=1)
    """Side of a patch, in pixels."""

    @property
    def tokens(self) -> int:
        """Number of patches S of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, [3, image_size, image_size]."""
        return (3, self.image_size, self.image_size)

    def check_images(self, shape: Sequence[int]) -> None:
        """Raise UserError, which names both sizes, unless images of this shape are [B, 3, image_size, image_size]."""
        side = self.image_size
        if len(shape) != 4 or tuple(shape[1:]) != (3, side, side):
            raise UserError(
                f"images of shape {' x '.join(map(str, shape))}, but the model takes B x 3 x {side} x {side}; resize "
                "them, as `preprocess` does, or build the model with a different image_size"
            )

    @model_validator(mode="after")
    def _whole_patches(self) -> "PatchSpec":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}; change one of them"
            )
        return self


class MixerSpec(PatchSpec):
    """An MLP-Mixer or, with `sparse_blocks` > 0, a Sparse-MLP."""

    family: Literal["mixer", "sparse_mlp"]
    token_hidden: int = Field(ge=1)
    """Hidden width D_S of the MLP that mixes patches in dense blocks."""
    channel_hidden: int = Field(ge=1)
    """Hidden width D_C of the MLP that mixes channels in dense blocks."""
    dense_blocks: int = Field(ge=0)
    """Number of dense blocks L1."""
    sparse_blocks: int = Field(default=0, ge=0)
    """Number of sparse blocks L2."""
    sparse_position: Literal["last", "first", "spread"] = "last"
    """Where the sparse blocks are: `last` after the dense ones, `first` before them, `spread` evenly among them with
    a sparse block at the end."""
    rerepresent: bool = True
    """Whether sparse blocks have re-represent layers, which change patches and channels from S, C to S1, C1; if not,
    S1 = S and C1 = C."""
    rerepresent_skip: bool = False
    """Whether a skip leads around each sparse block, re-represent layers included; the paper draws none. Without
    re-represent layers it makes no difference, because there is none then."""
    skip_after_norm: bool = False
    """Whether the skip around MoE_C starts behind its norm, as figure 1 of Sparse-MLP draws it, or before it, as in
    dense blocks and MLP-Mixer."""
    sparse_tokens: int = Field(default=0, ge=0)
    """Number of patches S1 inside a sparse block, between its re-represent layers."""
    sparse_width: int = Field(default=0, ge=0)
    """Number of channels C1 inside a sparse block, between its re-represent layers."""
    moe_s: MoESpec | None = None
    """Experts that mix patches; the items routed to them are channels, of length S1, or chunks of channels."""
    moe_c: MoESpec | None = None
    """Experts that mix channels; the items routed to them are patches, of length C1."""

    @property
    def depth(self) -> int:
        """Number of blocks, dense and sparse."""
        return self.dense_blocks + self.sparse_blocks

    @property
    def inner(self) -> tuple[int, int]:
        """Patches and channels inside a sparse block, (S1, C1)."""
        return (self.sparse_tokens, self.sparse_width) if self.rerepresent else (self.tokens, self.width)

    def is_sparse(self, block: int) -> bool:
        """Return whether a block is sparse; blocks are counted from 0."""
        if self.sparse_position == "last":
            return block >= self.dense_blocks
        if self.sparse_position == "first":
            return block < self.sparse_blocks
        return (block + 1) * self.sparse_blocks // self.depth > block * self.sparse_blocks // self.depth

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The experts of the sparse blocks."""
        kinds = {"moe_s": self.moe_s, "moe_c": self.moe_c} if self.sparse_blocks else {}
        return {kind: moe for kind, moe in kinds.items() if moe is not None and moe.experts}

    @model_validator(mode="after")
    def _complete(self) -> "MixerSpec":
        shaped = self.sparse_tokens and self.sparse_width or not self.rerepresent
        if self.sparse_blocks and not (self.moe_s and self.moe_c and shaped):
            raise ValueError("sparse_blocks need moe_s, moe_c, sparse_tokens and sparse_width; give them")
        check_chunk(self.moe_s, self.inner[1])
        return self


class GmlpSpec(PatchSpec):
    """A gMLP, or an aMLP, which is a gMLP with tiny attention."""

    family: Literal["gmlp", "amlp"]
    depth: int = Field(ge=1)
    """Number of blocks."""
    hidden: int = Field(ge=2, multiple_of=2)
    """Channels F behind the first projection of a block (d_ffn in the paper), which the gate halves."""
    attention: int = Field(default=64, ge=1)
    """Size of the one attention head of an aMLP; a gMLP ignores it."""


class ResMlpSpec(PatchSpec):
    """A ResMLP."""

    family: Literal["resmlp"]
    depth: int = Field(ge=1)
    """Number of blocks."""
    channel_hidden: int = Field(ge=1)
    """Hidden width of the MLP that mixes channels."""
    layer_scale: float = Field(default=1e-5, gt=0)
    """What the weights of the residual branches (LayerScale) start with; deeper models start with less."""


class TransformerSpec(PatchSpec):
    """What every model with multi-head attention has."""

    depth: int = Field(ge=1)
    """Number of blocks."""
    heads: int = Field(ge=1)
    """Attention heads, each with width / heads channels."""
    pool: Literal["cls", "mean"]
    """What an image's features are: `cls` the output of a class token, `mean` the mean over patches, without a class
    token."""
    positions: Literal["sin_cos", "sin_cos_swapped", "learned"] = "sin_cos"
    """What tells patches apart: fixed sines and cosines of row and column in MoCo v3's order (`sin_cos`) or in that of
    version 0.1.0 (`sin_cos_swapped`), or trained vectors (`learned`: DeiT, V-MoE)."""

    representation: bool = False
    """Whether a classifier's head begins with a linear layer and tanh, as wide as the model (V-MoE, WideNet)."""
    distillation_token: bool = False
    """Whether there is a second token with a head of its own, which learns from a teacher (DeiT); the logits are the
    mean of both heads."""

    @property
    def extra_tokens(self) -> int:
        """Number of tokens before the patches."""
        return int(self.pool == "cls") + int(self.distillation_token)

    @model_validator(mode="after")
    def _one_kind_of_head(self) -> "TransformerSpec":
        if self.distillation_token and (self.pool != "cls" or self.representation):
            raise ValueError("distillation_token needs pool: cls and representation: false; set them, or leave it out")
        return self

    @model_validator(mode="after")
    def _whole_heads(self) -> "TransformerSpec":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}; change one of them")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4, as sine-cosine positions need; change it")
        return self


class VitSpec(TransformerSpec, RoutedSpec):
    """A ViT or, with `moe_c`, a V-MoE."""

    family: Literal["vit", "vmoe"]
    channel_hidden: int = Field(ge=1)
    """Hidden width of the MLP in dense blocks."""
    moe_c: MoESpec | None = None
    """Experts that replace the MLP in the blocks that `moe_placement` names."""

    @model_validator(mode="after")
    def _complete(self) -> "VitSpec":
        if self.family == "vmoe" and self.moe_c is None:
            raise ValueError("family vmoe needs moe_c; give it, or use a ViT")
        return self


class WideNetSpec(TransformerSpec):
    """A WideNet, whose blocks share one attention layer and one set of experts; each block has its own LayerNorms."""

    family: Literal["widenet"]
    moe_c: MoESpec
    """The experts that all blocks share."""

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The shared experts."""
        return {"moe_c": self.moe_c} if self.moe_c.experts else {}


ImageSpec = Annotated[MixerSpec | GmlpSpec | ResMlpSpec | VitSpec | WideNetSpec, Field(discriminator="family")]
"""Any image model's spec, for reading one back from data; `family` says which class it is."""
TextModelSpec = Annotated[GmlpTextSpec | BertSpec | MixerTextSpec, Field(discriminator="family")]
"""Any text model's spec, for reading one back from data; `family` says which class it is."""
AnySpec = Annotated[
    MixerSpec | GmlpSpec | ResMlpSpec | VitSpec | WideNetSpec | GmlpTextSpec | BertSpec | MixerTextSpec,
    Field(discriminator="family"),
]
"""Any model's spec, for reading one back from data; `family` says which class it is."""


def of_images(spec: ModelSpec) -> PatchSpec:
    """Return the spec of a model that takes images. Raises UserError if the model takes text."""
    if not isinstance(spec, PatchSpec):
        raise UserError(f"a {spec.family} takes text, and images were to go into it; choose a model of images")
    return spec
