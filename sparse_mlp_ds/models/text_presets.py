"""The models of text by name: those of gMLP's paper (arXiv 2105.08050), and small ones for the embedded speeches.

The paper's vocabulary has 32,000 pieces. Its sizes hold an output bias of that many numbers too, which belongs to the
stage of training here: they are those of `sparse-mlp-ds models` and 32,000. Models of its ablations have rows of 128
tokens, and the number of their blocks in their names; the others have rows of 512.
"""

from typing import Literal

from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.text_spec import BertSpec, GmlpTextSpec, MixerTextSpec, TextSpec

PIECES = 32_000
SHORT, LONG = 128, 512
Gate = Literal["multiplicative", "additive", "linear"]


def _gmlp(depth: int, width: int, hidden: int, length: int = LONG, vocabulary: int = PIECES) -> GmlpTextSpec:
    return GmlpTextSpec(
        family="gmlp_text", vocabulary=vocabulary, length=length, depth=depth, width=width, hidden=hidden
    )


def _amlp(gmlp: GmlpTextSpec, depth: int, attention: int) -> GmlpTextSpec:
    """Return an aMLP, which is as wide as a gMLP and has fewer blocks."""
    return gmlp.model_copy(update={"family": "amlp_text", "depth": depth, "attention": attention})


def _bert(depth: int, width: int, heads: int, length: int = LONG, vocabulary: int = PIECES) -> BertSpec:
    """Return a BERT, whose MLPs are four times as wide as the model."""
    return BertSpec(
        family="bert",
        vocabulary=vocabulary,
        length=length,
        depth=depth,
        width=width,
        heads=heads,
        channel_hidden=4 * width,
    )


def _gate(gate: Gate) -> GmlpTextSpec:
    """Return a variant of the ablation's gMLP whose gate halves nothing: 2048 inner channels make the paper's 92 M."""
    return _gmlp(36, 512, 2048, SHORT).model_copy(update={"gate": gate})


def _mixer(depth: int, width: int, token_hidden: int, vocabulary: int = PIECES) -> MixerTextSpec:
    """Return an MLP-Mixer, whose channel MLPs are four times as wide as the model."""
    return MixerTextSpec(
        family="mixer_text",
        vocabulary=vocabulary,
        length=SHORT,
        depth=depth,
        width=width,
        token_hidden=token_hidden,
        channel_hidden=4 * width,
    )


def text_presets() -> dict[str, TextSpec]:
    """Return the models by name."""
    base, large = _gmlp(48, 512, 3072), _gmlp(96, 768, 3072)
    speeches = _gmlp(6, 128, 512, SHORT, 4096)
    experts = {"depth": 5, "moe_placement": "tail2", "moe_c": MoESpec(experts=4, hidden=256)}
    return {
        "gmlp_text_b": base,
        "gmlp_text_l": large,
        "gmlp_text_xl": _gmlp(144, 1024, 4096),
        "amlp_text_b": _amlp(base, 36, 64),
        "amlp_text_l": _amlp(large, 72, 128),
        "bert_b": _bert(12, 768, 12),
        "bert_l": _bert(24, 1024, 16),
        **{f"gmlp_text_{depth}": _gmlp(depth, 512, 3072, SHORT) for depth in (18, 36, 72, 144)},
        "gmlp_text_36_multiplicative": _gate("multiplicative"),
        "gmlp_text_36_additive": _gate("additive"),
        "gmlp_text_36_linear": _gate("linear"),
        **{f"bert_{depth}": _bert(depth, 768, 12, SHORT) for depth in (6, 12, 24, 48)},
        "mixer_text_18": _mixer(18, 768, 512),
        "gmlp_text_speeches": speeches,
        "amlp_text_speeches": _amlp(speeches, 6, 64),
        "sparse_gmlp_text_speeches": speeches.model_copy(update=experts),
        "bert_speeches": _bert(3, 128, 4, SHORT, 4096),
        "mixer_text_speeches": _mixer(4, 128, 64, 4096),
    }
