"""The evaluate stage: what the weights of the stage before reach on the held-out samples."""

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from sparse_mlp_ds.checkpoints import best
from sparse_mlp_ds.config.stages import ClassifierStage, Evaluate, FinetuneSpan, MaskedLM, TrainingStage
from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.train import compiled, initial_weights, stage_results, text_checks
from sparse_mlp_ds.train.answer_spans import build_span_model
from sparse_mlp_ds.train.evaluate import Outcome, outcomes
from sparse_mlp_ds.train.evaluate_text import AnswerOutcome, MaskedOutcome, answer_outcome, masked_outcome
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.masked_lm import build_masked_model
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.train.supervised import build_classifier


def evaluate(job: Job, folder: RunFolder, name: str, stage: Evaluate) -> dict[str, Any]:
    """Measure the newest or the best checkpoint's weights; RUN/NAME.json gets all figures.

    Returns the stage's entry in summary.json. Collective. Raises UserError if the best checkpoint is not there.
    """
    started = time.perf_counter()
    network, measure = _prepared(job, stage, job.trained_before(name))
    source = folder.start
    if stage.weights == "best":
        where = f"stages.{name}.weights: {folder.path}"
        source, _ = comm.on_rank_zero(lambda: best.open_best(folder.checkpoints, vars(folder.progress), where))
    initial_weights.load_previous(network, stage, folder, source)
    compiled.compile_blocks([network] if job.compiles else [])
    outcome = measure()
    folder.write(f"{name}.json", stage_results.content(outcome, job.classes))
    stage_results.write_hits(folder, name, outcome, job.val)
    metrics, samples = stage_results.split(outcome.metrics())
    entry = {"name": name, "kind": stage.kind, "steps": 0, "metrics": metrics, job.samples: samples}
    return entry | {"seconds": time.perf_counter() - started}


def _prepared(
    job: Job, stage: Evaluate, before: TrainingStage
) -> tuple[nn.Module, Callable[[], Outcome | MaskedOutcome | AnswerOutcome]]:
    """Return the network that an evaluate stage measures, without its weights, and what measures it.

    before: the training stage that the weights come from.
    """
    index, data, batch = job.val, job.data_of(before), stage.batch_size
    if isinstance(before, MaskedLM):
        masked, share = build_masked_model(job, stage), before.mask_share
        restore = lambda inputs, places: masked(inputs, places)[0]  # noqa: E731
        return masked, lambda: masked_outcome(restore, index, data, batch, share)
    if isinstance(before, FinetuneSpan):
        spans, longest = build_span_model(job, stage), before.max_answer
        answer = lambda inputs: spans(inputs)[0]  # noqa: E731
        asked = text_checks.load_questions(index)
        return spans, lambda: answer_outcome(answer, index, asked, data, batch, longest)
    assert isinstance(before, ClassifierStage)  # as the recipe was checked
    classifier, loss = build_classifier(job, stage), before.loss
    forward = lambda inputs: classifier(inputs)[0].float()  # noqa: E731
    return classifier, lambda: outcomes(forward, index, data, job.image_size, batch, loss)[0]
