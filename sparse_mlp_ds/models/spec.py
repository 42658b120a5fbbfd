"""What a model is, as data: the fields that a recipe's `model:` section may override."""

from typing import Literal

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

    @model_validator(mode="after")
    def _enough_experts(self):
        if self.experts and self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} exceeds experts {self.experts}; lower top_k or add experts")
        return self


class PatchSpec(Spec):
    """What every model over patches has."""

    family: str
    image_size: int = Field(ge=1)
    """Side of the square input, pixels."""
    patch_size: int = Field(ge=1)
    """Side of a patch, pixels."""
    width: int = Field(ge=1)
    """Channels C."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""

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
        """The experts that the model really has, by mixing type."""
        found = {"moe_s": self.moe_s, "moe_c": self.moe_c} if self.sparse_blocks else {}
        return {kind: moe for kind, moe in found.items() if moe is not None and moe.experts}

    @model_validator(mode="after")
    def _complete(self):
        shaped = self.sparse_tokens and self.sparse_width or not self.rerepresent
        if self.sparse_blocks and not (self.moe_s and self.moe_c and shaped):
            raise ValueError("sparse_blocks need moe_s, moe_c, sparse_tokens and sparse_width; give them")
        return self
