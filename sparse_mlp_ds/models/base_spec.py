"""What every model's spec has, whether the model takes images or text."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from sparse_mlp_ds.schema import Section


class MoESpec(Section):
    """The experts of one mixing type."""

    experts: int = Field(ge=0)
    """Number of experts; 0 puts one dense MLP in their place, as Sparse-S has it in MoE_C."""
    top_k: int = Field(default=1, ge=1)
    """Experts per item, K."""
    hidden: int = Field(ge=1)
    """Hidden width of one expert (D_S' or D_C' in Sparse-MLP's table 2)."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout inside the experts, or inside the one MLP in their place; null takes the model's `dropout`."""
    shared: int = Field(default=0, ge=0)
    """Hidden width of a shared expert (DeepSeekMoE, arXiv 2401.06066): an MLP that every item passes, whose output is
    added to that of its routed experts; 0 has none."""
    chunk: int = Field(default=1, ge=1)
    """Channels that MoE_S routes together, as one item: an expert mixes the tokens of each of them with the same
    weights (arXiv 2203.06850, sMoE). MoE_C has none, and leaves it at 1."""

    @model_validator(mode="after")
    def _enough_experts(self) -> "MoESpec":
        if self.experts and self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} exceeds experts {self.experts}; lower top_k or add experts")
        if self.shared and not self.experts:
            raise ValueError("shared: without experts every item passes one MLP already; leave it out, or widen hidden")
        return self


class ModelSpec(Section):
    """What every model has, whether it takes images or text."""

    if TYPE_CHECKING:  # a field of most families; MixerSpec computes it

        @property
        def depth(self) -> int:
            """Number of blocks."""

    family: str
    """Kind of the model, by which a spec is read back from data."""
    width: int = Field(ge=1)
    """Channels C."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Rate of stochastic depth in the last block; it grows linearly from 0 in the first block."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside MLPs, after GELU and at the end, and inside experts that have no `dropout` of their own."""
    checkpoint_blocks: bool = False
    """Whether to compute each block again in the backward pass instead of keeping its activations, which needs less
    memory and more time."""

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The model's experts by mixing type (`moe_s`, `moe_c`); a mixing type with 0 experts is left out."""
        return {}

    @model_validator(mode="after")
    def _chunks_of_channels(self) -> "ModelSpec":
        moe_c: MoESpec | None = getattr(self, "moe_c", None)
        if moe_c and moe_c.chunk > 1:
            raise ValueError("moe_c.chunk: only MoE_S routes chunks of channels; leave it out")
        return self

    @property
    def tokens(self) -> int:
        """Number of tokens S that the blocks mix: patches of an image, or the tokens of a row of text."""
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: [3, H, W] of an image, [n] of a row of text."""
        raise NotImplementedError


class RoutedSpec(ModelSpec):
    """What a model has of whose blocks some have experts for channels, at places that a key names."""

    moe_c: MoESpec | None = None
    """Experts that mix channels, in the blocks that `moe_placement` names."""
    moe_placement: str = Field(default="every2", pattern=r"^(every2|(last|tail)[1-9]\d*)$")
    """Which blocks have experts: `every2` those with odd numbers, counted from 0, and `lastN` the last N of these, in
    V-MoE's names; `tailN` the last N of all blocks (WideNet's ViT-MoE)."""

    def is_sparse(self, block: int) -> bool:
        """Return whether a block has experts for channels; blocks are counted from 0."""
        candidates, last = self._placement()
        return self.moe_c is not None and block in candidates[-last:]

    def _placement(self) -> tuple[range, int]:
        """Return the blocks that may have experts, and how many of the last of these do."""
        candidates = range(self.depth) if self.moe_placement.startswith("tail") else range(1, self.depth, 2)
        return candidates, len(candidates) if self.moe_placement == "every2" else int(self.moe_placement[4:])

    @property
    def experts(self) -> dict[str, MoESpec]:
        """The experts of the sparse blocks."""
        sparse = any(self.is_sparse(block) for block in range(self.depth))
        return {"moe_c": self.moe_c} if sparse and self.moe_c and self.moe_c.experts else {}

    @model_validator(mode="after")
    def _enough_blocks(self) -> "RoutedSpec":
        candidates, last = self._placement()
        if last > len(candidates):
            odd = "" if self.moe_placement.startswith("tail") else "odd "
            raise ValueError(f"moe_placement {self.moe_placement} exceeds the {len(candidates)} {odd}blocks; lower it")
        return self


def check_chunk(moe_s: MoESpec | None, channels: int) -> None:
    """Raise ValueError unless channels can be cut into the chunks that MoE_S routes."""
    if moe_s and channels % moe_s.chunk:
        raise ValueError(f"moe_s.chunk {moe_s.chunk} does not divide {channels} channels; change it")
    if moe_s and moe_s.chunk > 1 and not moe_s.experts:
        raise ValueError("moe_s.chunk needs experts, which chunks are routed to; set moe_s.experts, or leave it out")
