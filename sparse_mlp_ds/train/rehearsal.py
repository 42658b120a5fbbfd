"""One micro-batch of each stage on torch's meta device: how much memory its forward and backward passes keep.

Shapes and types are those of the run, numbers are not computed. Experts get equally many rows each, and rows that
travel between ranks are copied as the exchange copies them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds.config.stages import (
    ClassifierStage,
    Evaluate,
    FinetuneSpan,
    ImageClassifierStage,
    MaskedLM,
    Pretrain,
    Probe,
    TrainingStage,
)
from sparse_mlp_ds.models.deit import DistilledVisionTransformer
from sparse_mlp_ds.models.language import MaskedModel
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.ssl.loss import symmetric_info_nce
from sparse_mlp_ds.ssl.networks import MomentumNet, OnlineNet
from sparse_mlp_ds.train import distillation
from sparse_mlp_ds.train.answer_spans import SpanModel
from sparse_mlp_ds.train.evaluate_text import span_losses, token_losses
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.live_bytes import LiveBytes
from sparse_mlp_ds.train.masked_lm import masked_loss
from sparse_mlp_ds.train.rehearsed import (
    EvenMoE,
    cast,
    make_backbone,
    make_classifier,
    make_inputs,
    make_network,
    make_whole,
)

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Rehearsal:
    """What one stage keeps on one rank."""

    trained: dict[int, int]
    """Parameters that the stage trains, by the number of ranks that hold the same ones."""
    frozen: int
    """Parameters of the trained network that stay as they are."""
    companion: int
    """Bytes of networks outside the engine: a momentum encoder, a weight average, or a probe's backbone."""
    training: int
    """Most bytes that one micro-batch's forward and backward passes keep alive, its samples included."""
    evaluation: int
    """Most bytes that one batch of evaluation keeps alive, its samples included."""


def rehearse(job: Job, name: str) -> Rehearsal:
    """Return what a stage of the run keeps. name: the stage's name."""
    stage, low = job.recipe.stages[name], DTYPES[job.ds_config.precision]
    # A few tensors are made on the CPU on the way; they are small and not counted.
    with LiveBytes() as live:
        if isinstance(stage, Evaluate):
            net, forward = _evaluated(job, job.trained_before(name))
            peak = _evaluate(live, forward, job, -(-stage.batch_size // job.world))
            return Rehearsal({}, 0, _bytes(net), 0, peak)
        batch = job.batches[name]
        clears = job.ds_config.zero_stage >= 2 or batch.accumulation > 1
        if isinstance(stage, Pretrain):
            module, companions, step, forward = _pretrain(job, stage, low, batch.micro, batch.accumulation)
        elif isinstance(stage, Probe):
            module, companions, step, forward = _probe(job, stage, low, batch.micro)
        elif isinstance(stage, MaskedLM):
            module, companions, step, forward = _masked(job, stage, low, batch.micro)
        elif isinstance(stage, FinetuneSpan):
            module, companions, step, forward = _spans(job, stage, low, batch.micro)
        else:
            module, companions, step, forward = _supervised(job, stage, low, batch.micro)
        if clears:  # DeepSpeed's buckets take the gradients, or an earlier micro-batch has made them
            for parameter in filter(lambda p: p.requires_grad, module.parameters()):
                parameter.register_post_accumulate_grad_hook(_clear)
        before = live.peak = live.now
        step()
        training = live.peak - before
        for parameter in module.parameters():
            parameter.grad = None
        evaluation = _evaluate(live, forward, job, job.evaluation_batch(name) // job.world)
        trained, frozen = _counts(job, module)
        return Rehearsal(trained, frozen, sum(map(_bytes, companions)), training, evaluation)


Parts = tuple[nn.Module, list[nn.Module], Callable[[], None], Callable[[Tensor], object]]
"""Trained network, networks outside the engine, one micro-batch's passes, and the forward pass of evaluation."""


def _pretrain(job: Job, stage: Pretrain, low: torch.dtype, micro: int, accumulation: int) -> Parts:
    """MoCo v3: `train.moco` with the same order of passes."""
    with torch.device("meta"):
        online = cast(OnlineNet(make_backbone(job), stage.hidden, stage.dim), low)
        average = encoder = MomentumNet(make_backbone(job), stage.hidden, stage.dim)
        if stage.momentum_precision == "run" and low != torch.float32:
            encoder = cast(MomentumNet(make_backbone(job), stage.hidden, stage.dim), low)
    online.backbone.patch_embed.requires_grad_(not stage.freeze_patch)
    companions: list[nn.Module] = [average] if encoder is average else [average, encoder]
    over_the_step = accumulation > 1 and stage.contrast == "batch"

    def contrast(features: Tensor, momentum_features: Tensor) -> Tensor:
        queries, keys = online.queries(features), encoder.keys(momentum_features)
        return symmetric_info_nce(queries, keys, stage.temperature)

    def step() -> None:
        images, keys = make_inputs(job, 2 * micro)
        if not over_the_step:
            features, reports = online(images, keys)
            loss = contrast(features.view(2, micro, -1), encoder(images).view(2, micro, -1))
            (loss + _balance(reports)).backward()
            return
        waiting = [make_inputs(job, 2 * micro) for _ in range(accumulation - 1)]
        features, momentum_features = (
            torch.empty(2, accumulation * micro, job.recipe.spec.width, dtype=kind, device="meta")
            for kind in (low, next(encoder.parameters()).dtype)
        )
        loss = contrast(features.requires_grad_(), momentum_features)
        again, reports = online(images, keys)
        (again.float().sum() + loss + _balance(reports)).backward()
        del waiting

    return online, companions, step, online.backbone.forward_features


def _supervised(job: Job, stage: ClassifierStage, low: torch.dtype, micro: int) -> Parts:
    classifier = cast(make_classifier(job), low)
    average: list[nn.Module] = [make_classifier(job).requires_grad_(False)] if stage.ema else []
    teacher: list[nn.Module] = []
    if isinstance(stage, ImageClassifierStage) and stage.distill:
        spec = distillation.config_of(stage.distill.teacher).spec
        teacher.append(make_network(spec, job.recipe.data.class_count, make_whole).requires_grad_(False))

    def step() -> None:
        images, keys = make_inputs(job, micro)
        both = classifier.forward_both if isinstance(classifier, DistilledVisionTransformer) and teacher else classifier
        logits, reports = both(images, keys)
        loss = F.cross_entropy(logits.float(), torch.empty_like(logits, dtype=torch.float32))
        for model in teacher:
            with torch.no_grad():
                model(images)
        (loss + _balance(reports)).backward()

    return classifier, [*average, *teacher], step, average[0] if average else classifier


def _masked(job: Job, stage: MaskedLM, low: torch.dtype, micro: int) -> Parts:
    """Masked language modelling: `train.masked_lm`, whose places are these many of each sequence."""
    with torch.device("meta"):
        model = cast(MaskedModel(make_backbone(job), job.text.vocabulary), low)
    places = max(round(stage.mask_share * job.text.length), 1)

    def forward(tokens: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        return model(tokens, torch.zeros(len(tokens), places, dtype=torch.int64, device="meta"), keys)

    def step() -> None:
        logits, reports = forward(*make_inputs(job, micro))
        targets = torch.zeros(logits.shape[:2], dtype=torch.int64, device="meta")
        (masked_loss(logits, targets) + _balance(reports)).backward()

    def measure(tokens: Tensor) -> Tensor:
        logits = forward(tokens)[0].flatten(0, 1)
        return token_losses(logits, torch.zeros(len(logits), dtype=torch.int64, device="meta"))

    return model, [], step, measure


def _spans(job: Job, stage: FinetuneSpan, low: torch.dtype, micro: int) -> Parts:
    """Fine-tuning for answers: `train.answer_spans`."""
    model = cast(SpanModel(make_backbone(job, 2)), low)
    average: list[nn.Module] = [SpanModel(make_backbone(job, 2)).requires_grad_(False)] if stage.ema else []

    def step() -> None:
        logits, reports = model(*make_inputs(job, micro))
        start, end = logits.unbind(dim=2)
        losses = span_losses(start, end, torch.zeros(micro, dtype=torch.int64, device="meta"))
        (losses.mean() + _balance(reports)).backward()

    return model, average, step, average[0] if average else model


def _evaluated(job: Job, before: TrainingStage) -> tuple[nn.Module, Callable[[Tensor], object]]:
    """Return the network of an evaluate stage, and its forward pass. before: the stage that trained it."""
    if isinstance(before, MaskedLM):
        model, _, _, forward = _masked(job, before, torch.float32, 1)
        return model, forward
    if isinstance(before, FinetuneSpan):
        spans = SpanModel(make_backbone(job, 2))
        return spans, spans
    classifier = make_classifier(job)
    return classifier, classifier


def _probe(job: Job, stage: Probe, low: torch.dtype, micro: int) -> Parts:
    backbone = make_backbone(job).requires_grad_(False)
    with torch.device("meta"):
        heads = nn.ModuleList(nn.Linear(job.recipe.spec.width, job.recipe.data.class_count) for _ in stage.rates).to(
            low
        )

    def step() -> None:
        with torch.no_grad():
            features = backbone.forward_features(make_inputs(job, micro)[0])[0]
        logits = torch.stack([head(features.to(low)) for head in heads]).float()
        logits.logsumexp(dim=-1).sum().backward()

    return heads, [backbone], step, backbone.forward_features


def _evaluate(live: LiveBytes, forward: Callable[[Tensor], object], job: Job, samples: int) -> int:
    """Return the bytes of one forward pass without a graph."""
    before = live.peak = live.now
    with torch.no_grad():
        forward(make_inputs(job, max(samples, 1))[0])
    return live.peak - before


def _balance(reports: Reports) -> Tensor | float:
    return sum(report.balance for report in reports.values())


def _clear(parameter: Tensor) -> None:
    parameter.grad = None


def _bytes(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())


def _counts(job: Job, module: nn.Module) -> tuple[dict[int, int], int]:
    """Return the trained parameters by the number of ranks that hold the same ones, and the number of frozen ones."""
    copies: dict[nn.Parameter, int] = {}
    for layer in module.modules():
        if isinstance(layer, EvenMoE):
            copies |= dict.fromkeys(layer.experts.parameters(), job.world // layer.ep_size)
    trained: dict[int, int] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            ranks = copies.get(parameter, job.world)
            trained[ranks] = trained.get(ranks, 0) + parameter.numel()
    return trained, sum(p.numel() for p in module.parameters() if not p.requires_grad)
