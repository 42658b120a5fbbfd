"""The stages of a recipe that train on text: masked language modelling, and fine-tuning for classes and for answers."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sparse_mlp_ds.config.stage_base import ClassifierStage, LabelStage, ValidatedStage


class MaskedLM(ValidatedStage):
    """Masked language modelling as in BERT (Devlin et al., 2019, 3.1): the model restores tokens that were hidden."""

    kind: Literal["mlm"]
    """Selects this kind of stage."""
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a sequence's tokens that are to be restored: the same number in every full sequence, round(share x
    length). Of them 80 % become `[MASK]`, 10 % a random token, and 10 % stay."""


class FinetuneText(ClassifierStage):
    """Fine-tuning on sentences, pairs of sentences or documents with a class each, with a new head."""

    kind: Literal["finetune_text"]
    """Selects this kind of stage."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread evenly over all classes; the loss `sigmoid` needs 0."""
    from_scratch: bool = False
    """Start from new weights, whatever stage comes before: what pre-training is compared with."""


class FinetuneSpan(LabelStage):
    """Fine-tuning on questions whose answers are stretches of a text, as in SQuAD, with a new head of two outputs per
    token: one for the first token of the answer, one for the last."""

    kind: Literal["finetune_span"]
    """Selects this kind of stage."""
    max_answer: PositiveInt = 30
    """Most tokens of an answer."""
    from_scratch: bool = False
    """Start from new weights, whatever stage comes before: what pre-training is compared with."""
