"""The MoE layers of a model, and what the items are that they route."""

from dataclasses import dataclass
from typing import Literal

from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.spec import MixerSpec, TransformerSpec
from sparse_mlp_ds.moe.layer import MoELayer

Kind = Literal["moe_s", "moe_c"]
"""Mixing type."""
KINDS: tuple[Kind, ...] = ("moe_s", "moe_c")


@dataclass(frozen=True)
class Layer:
    """One MoE layer, as its reports name it."""

    name: str
    """Number of the block and mixing type, as in `4.moe_s`."""
    kind: Kind
    """Mixing type, `moe_s` or `moe_c`."""
    moe: MoELayer
    """The layer, with the experts of this rank."""
    items: int
    """Items per sample T that are counted: patches, tokens of text, channels or chunks of these; no class tokens."""
    tokens: int
    """Tokens before the patches, which are routed too but not counted."""
    on_grid: bool
    """Whether the items are the image's patches, row by row."""
    rerepresented: bool
    """Whether a re-represent layer stands in front, whose patches are mixtures of the image's."""

    @property
    def experts(self) -> int:
        """Number of experts E, over all ranks."""
        return self.moe.num_experts

    def same_items(self, other: "Layer") -> bool:
        """Return whether item n is the same thing in both layers: a patch of the image, or one place of a shape that
        both layers have.
        """
        return (self.kind, self.items, self.on_grid) == (other.kind, other.items, other.on_grid)


def layers_of(backbone: Backbone, spec: ModelSpec) -> list[Layer]:
    """Return the MoE layers of a model, from its first to its last; none for a model without experts."""
    found = []
    for number, block in enumerate(backbone.blocks):
        for kind in KINDS:
            moe = getattr(block, kind, None)
            if isinstance(moe, MoELayer):
                found.append(_layer(f"{number}.{kind}", kind, moe, spec))
    return found


def _layer(name: str, kind: Kind, moe: MoELayer, spec: ModelSpec) -> Layer:
    if isinstance(spec, TransformerSpec):
        return Layer(name, kind, moe, spec.tokens, spec.extra_tokens, on_grid=True, rerepresented=False)
    tokens, channels = spec.inner if isinstance(spec, MixerSpec) else (spec.tokens, spec.width)
    items = channels // spec.experts[kind].chunk if kind == "moe_s" else tokens
    rerepresented = isinstance(spec, MixerSpec) and spec.rerepresent
    on_grid = isinstance(spec, MixerSpec) and kind == "moe_c" and not rerepresented
    return Layer(name, kind, moe, items, 0, on_grid, rerepresented)
