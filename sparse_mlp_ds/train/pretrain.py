"""The pretraining stage: MoCo v3 (arXiv 2104.02057, algorithm 1) on any registered model."""

from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.average import follow
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.recipe import Pretrain
from sparse_mlp_ds.ssl.contrastive import symmetric_info_nce
from sparse_mlp_ds.ssl.moco import MomentumNet, OnlineNet
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train import schedule
from sparse_mlp_ds.train.evaluate import knn_accuracy
from sparse_mlp_ds.train.groups import RateScale


class Pretraining:
    """What the loop needs to know of MoCo v3."""

    hands_over_average = False
    clips = True
    rate_scale: RateScale = staticmethod(lambda name: 1.0)

    def __init__(self, job: Job, stage: Pretrain, total_steps: int):
        """Build both networks with equal, freshly drawn weights."""
        self.job, self.stage, self.total_steps = job, stage, total_steps
        self.views = stage.views
        make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes)
        build = lambda: registry.build(job.recipe.spec, make_moe=make_moe)  # noqa: E731
        self.module: nn.Module = OnlineNet(build(), stage.hidden, stage.dim)
        self.averaged: nn.Module = MomentumNet(build(), stage.hidden, stage.dim)
        for net in (self.module, self.averaged):
            init_weights(net, job.recipe.train.seed)
            net.to(dist.device())
        self.module.backbone.patch_embed.requires_grad_(not stage.freeze_patch)
        engines.join_expert_groups(self.averaged)
        self.filled = self.module

    def begin(self) -> None:
        """Start the momentum net from the online net's weights."""
        follow(self.averaged, dict(self.module.named_parameters()), momentum=0.0)

    def loss(self, engine, batch: Batch) -> tuple[Tensor, Reports]:
        """Return the contrastive loss of one micro-batch and the MoE layers' reports."""
        views, keys = augment.views(batch, self.views, self.job.recipe.train.seed)
        images = augment.normalize(views.flatten(0, 1), self.job.recipe.data)  # [2 B, 3, H, W]
        queries, reports = engine(images, keys.flatten())
        momentum_keys = self.averaged(images)
        two_views = (2, len(batch.numbers), -1)
        return (
            symmetric_info_nce(queries.view(two_views), momentum_keys.view(two_views), self.stage.temperature),
            reports,
        )

    def before_step(self, engine, step: int) -> None:
        """Move the momentum net towards the online net, which comes before its keys are computed.

        step: number of optimizer steps taken so far. Done once per optimizer step, not per micro-batch.
        """
        momentum = schedule.encoder_momentum(step, self.total_steps, self.stage.momentum)
        follow(self.averaged, dict(engines.masters(engine)), momentum)

    def after_step(self, engine, step: int) -> None:
        """Nothing to do."""

    def measure_start(self) -> dict[str, float]:
        """Return the k-NN accuracy of the features that random weights give."""
        return {"knn_top1_untrained": self._knn()}

    def measure_end(self) -> dict[str, float]:
        """Return the k-NN accuracy of the learnt features."""
        return {"knn_top1": self._knn()}

    def _knn(self) -> float:
        job = self.job
        forward = lambda images: self.module.backbone.forward_features(images)[0]  # noqa: E731
        size, batch = job.recipe.spec.image_size, self.stage.evaluation_batch
        return knn_accuracy(forward, join(job.train), job.val, job.recipe.data, size, batch, self.stage.knn_k)
