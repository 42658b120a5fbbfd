"""What a model is, as data: the fields that a recipe's `model:` section may override."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MoESpec(Spec):
    """The experts of one mixing type."""

    experts: int = Field(ge=0)
    """Number of experts N; 0 means one dense MLP in their place (Sparse-S has that in MoE_C)."""
    top_k: int = Field(default=1, ge=1)
    """Experts per item, K."""
    hidden: int = Field(ge=1)
    """Hidden width of one expert: D_S' or D_C'."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout inside the experts, or inside the one MLP in their place; null takes the model's (V-MoE's code)."""

    @model_validator(mode="after")
    def _enough_experts(self):
        if self.experts and self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} exceeds experts {self.experts}; lower top_k or add experts")
        return self


class PatchSpec(Spec):
    """What every model over patches has; `depth`, its number of blocks, is a field or a property."""

    family: str
    image_size: int = Field(ge=1)
    """Side of the square input, pixels."""
    patch_size: int = Field(ge=1)
    """Side of a patch, pixels."""
    width: int = Field(ge=1)
    """Channels C."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside MLPs, and inside experts that have none of their own, after GELU and at the end."""
    checkpoint_blocks: bool = False
    """Compute each block again in the backward pass instead of keeping its activations: less memory, more time."""

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The experts that the model really has, by mixing type (`moe_s`, `moe_c`)."""
        return {}

    @property
    def tokens(self) -> int:
        """Patches S of one image."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _whole_patches(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        return self


class MixerSpec(PatchSpec):
    """An MLP-Mixer, or with `sparse_blocks` > 0 a Sparse-MLP."""

    family: Literal["mixer", "sparse_mlp"]
    token_hidden: int = Field(ge=1)
    """Hidden width D_S of the dense blocks' token-mixing MLP."""
    channel_hidden: int = Field(ge=1)
    """Hidden width D_C of the dense blocks' channel-mixing MLP."""
    dense_blocks: int = Field(ge=0)
    """L1."""
    sparse_blocks: int = Field(default=0, ge=0)
    """L2."""
    sparse_position: Literal["last", "first", "spread"] = "last"
    """Where the sparse blocks are: behind the dense ones, before them, or evenly among them, one at the end."""
    rerepresent: bool = True
    """Whether sparse blocks change the shape of the representation; without, S1 = S and C1 = C."""
    sparse_tokens: int = Field(default=0, ge=0)
    """Patches S1 inside a sparse block."""
    sparse_width: int = Field(default=0, ge=0)
    """Channels C1 inside a sparse block."""
    moe_s: MoESpec | None = None
    """Experts that mix tokens; they are routed channels (items of length S1)."""
    moe_c: MoESpec | None = None
    """Experts that mix channels; they are routed patches (items of length C1)."""

    @property
    def depth(self) -> int:
        """Blocks, dense and sparse."""
        return self.dense_blocks + self.sparse_blocks

    @property
    def inner(self) -> tuple[int, int]:
        """(S1, C1)."""
        return (self.sparse_tokens, self.sparse_width) if self.rerepresent else (self.tokens, self.width)

    def is_sparse(self, block: int) -> bool:
        """Say whether a block, counted from 0, is sparse."""
        if self.sparse_position == "last":
            return block >= self.dense_blocks
        if self.sparse_position == "first":
            return block < self.sparse_blocks
        return (block + 1) * self.sparse_blocks // self.depth > block * self.sparse_blocks // self.depth

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The experts of the sparse blocks."""
        found = {"moe_s": self.moe_s, "moe_c": self.moe_c} if self.sparse_blocks else {}
        return {kind: moe for kind, moe in found.items() if moe is not None and moe.experts}

    @model_validator(mode="after")
    def _complete(self):
        shaped = self.sparse_tokens and self.sparse_width or not self.rerepresent
        if self.sparse_blocks and not (self.moe_s and self.moe_c and shaped):
            raise ValueError("sparse_blocks need moe_s, moe_c, sparse_tokens and sparse_width; give them")
        return self


class GmlpSpec(PatchSpec):
    """A gMLP, or with tiny attention an aMLP."""

    family: Literal["gmlp", "amlp"]
    depth: int = Field(ge=1)
    """Blocks."""
    hidden: int = Field(ge=2, multiple_of=2)
    """Channels F behind a block's first projection (d_ffn); the gate halves them."""
    attention: int = Field(default=64, ge=1)
    """Size of the one head of an aMLP's attention; a gMLP has none."""


class TransformerSpec(PatchSpec):
    """What every model with multi-head attention has."""

    depth: int = Field(ge=1)
    """Blocks."""
    heads: int = Field(ge=1)
    """Attention heads; each has width / heads channels."""
    pool: Literal["cls", "mean"]
    """An image's features: a class token, or the mean over patches, without one."""

    @model_validator(mode="after")
    def _whole_heads(self):
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4, which the sine-cosine positions need")
        return self


class VitSpec(TransformerSpec):
    """A ViT, or with `moe_c` a V-MoE."""

    family: Literal["vit", "vmoe"]
    channel_hidden: int = Field(ge=1)
    """Hidden width of the dense blocks' MLP."""
    moe_c: MoESpec | None = None
    """Experts in place of the MLP, in the blocks that `moe_placement` names."""
    moe_placement: str = Field(default="every2", pattern=r"^(every2|last[1-9]\d*)$")
    """`every2`: the odd blocks, counted from 0; `lastN`: the last N of those (V-MoE's names)."""

    def is_sparse(self, block: int) -> bool:
        """Say whether a block, counted from 0, has experts in place of its MLP."""
        odd = range(1, self.depth, 2)
        last = len(odd) if self.moe_placement == "every2" else int(self.moe_placement.removeprefix("last"))
        return self.moe_c is not None and block in odd[-last:]

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The experts of the sparse blocks."""
        sparse = any(self.is_sparse(block) for block in range(self.depth))
        return {"moe_c": self.moe_c} if sparse and self.moe_c.experts else {}

    @model_validator(mode="after")
    def _complete(self):
        if self.family == "vmoe" and self.moe_c is None:
            raise ValueError("family vmoe needs moe_c; give it, or take a ViT")
        if self.moe_placement != "every2" and int(self.moe_placement[4:]) > self.depth // 2:
            raise ValueError(f"moe_placement {self.moe_placement} exceeds the {self.depth // 2} odd blocks; lower it")
        return self


class WideNetSpec(TransformerSpec):
    """A WideNet: one attention layer and one set of experts serve all blocks, each block has its own LayerNorms."""

    family: Literal["widenet"]
    moe_c: MoESpec
    """The experts."""

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The shared experts."""
        return {"moe_c": self.moe_c} if self.moe_c.experts else {}


AnySpec = Annotated[MixerSpec | GmlpSpec | VitSpec | WideNetSpec, Field(discriminator="family")]
"""For reading a spec back from data: its family says which it is."""
