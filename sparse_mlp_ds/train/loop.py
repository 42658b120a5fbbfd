"""The run, top to bottom: stages in order, and the steps of a training stage."""

import time
from typing import Any

from sparse_mlp_ds import dist, host
from sparse_mlp_ds.data import loader, sources
from sparse_mlp_ds.data.defects import BadCount
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.job import Job, plan
from sparse_mlp_ds.log.console import ProgressLine, final_table, say
from sparse_mlp_ds.log.meter import Meter
from sparse_mlp_ds.log.sinks import Sink, open_sinks
from sparse_mlp_ds.stages import Evaluate, Finetune, Pretrain, Probe, Supervised, TrainingStage
from sparse_mlp_ds.train import checkpoint, handover, schedule, state
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.evaluate import outcomes
from sparse_mlp_ds.train.finetune import Finetuning, build_classifier
from sparse_mlp_ds.train.guard import SkippedSteps
from sparse_mlp_ds.train.pretrain import Pretraining
from sparse_mlp_ds.train.probe import Probing
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.train.saving import Saver
from sparse_mlp_ds.train.stop import StoppedError, StopRequest
from sparse_mlp_ds.train.watchdog import Watch

Method = Pretraining | Finetuning | Probing
METHODS: dict[type, type[Method]] = {
    Pretrain: Pretraining,
    Supervised: Finetuning,
    Finetune: Finetuning,
    Probe: Probing,
}


def run(job: Job, watch: Watch) -> None:
    """Go through the recipe's stages, from wherever an earlier try stopped, and print what came out."""
    engines.init_deepspeed()
    engines.check_precision(job.ds_config)
    folder = RunFolder(job)
    saver, stop = Saver(folder.checkpoints, job.recipe.checkpoint), StopRequest(folder.path)
    if dist.rank() == 0:
        say(plan(job))
        if folder.start:
            say(f"resuming from {folder.start.path}{_moved(job, folder.start.manifest.get('topology', {}))}")
    sinks = open_sinks(folder.path, job.recipe.log, job.recipe.name, folder.progress.step) if dist.rank() == 0 else []
    for name, stage in job.recipe.stages.items():
        if folder.progress.is_done(name):
            continue
        started = time.perf_counter()
        watch.at("start", name, folder.progress.step)
        if isinstance(stage, Evaluate):
            watch.at("evaluate")
            entry = {"steps": 0, "metrics": _evaluate(job, name, stage, folder)}
            entry |= {"images": entry["metrics"].pop("images"), "seconds": time.perf_counter() - started}
            folder.progress.done.append({"name": name, "kind": stage.kind, **entry})
        else:
            _train(job, name, stage, folder, sinks, saver, stop, watch)
        folder.write_summary()
    for sink in sinks:
        sink.close()
    if dist.rank() == 0:
        final_table(folder.write_summary(), str(folder.path))


def _train(
    job: Job,
    name: str,
    stage: TrainingStage,
    folder: RunFolder,
    sinks: list[Sink],
    saver: Saver,
    stop: StopRequest,
    watch: Watch,
) -> None:
    """Train one stage to its end, saving on the way. Raises StoppedError on request."""
    # ---- what is trained, and where it starts
    total = job.steps(name)
    last = min(total, job.recipe.train.max_steps or total)
    batch = job.batches[name]
    method = METHODS[type(stage)](job, name)
    progress = folder.progress
    resumes = progress.stage == name
    if not resumes:
        handover.load_start(method.filled, stage, job)
        if stage.init_from is None:
            handover.load_previous(method.filled, stage, folder)
        method.begin()
    ds_config = job.ds_config if method.clips else job.ds_config | {"gradient_clipping": 0.0}
    engine = engines.build(method.module, stage.optimizer, batch, ds_config, method.rate_scale)
    if resumes:
        updates = progress.stage_step - progress.skipped
        state.restore(engine, method.averaged, checkpoint.Reader(folder.start), updates)
        state.restore_loss_scale(engine, progress.loss_scale)
    else:
        progress.stage, progress.stage_step, progress.seconds, progress.expert_items = name, 0, 0.0, {}
        progress.skipped = 0
        progress.measured = method.measure_start()

    # ---- its data, from the very sample where it stopped
    order, progress.data, progress.negatives = job.order(name), job.data_fingerprint, job.negatives(name)
    steps = range(progress.stage_step, last)
    here, world = dist.rank(), dist.world_size()
    share = batch.share(here, world)
    slots = micro_batches(order, steps, share, batch.accumulation)
    weight = batch.weight(here, world)
    data = job.recipe.data
    dataset = loader.ShardDataset(
        join(job.train), job.recipe.spec.image_size, data.classes, method.views, job.recipe.train.seed, order,
        cache=sources.cache(data),
    )  # fmt: skip
    batches = loader.load(dataset, slots, data.workers)  # closed by its own end, or when the loop is left
    bad = BadCount(data.bad_limit, order.samples)

    # ---- its log
    meter = Meter({kind: moe.top_k for kind, moe in job.recipe.spec.experts.items()})
    line = ProgressLine(name, progress.stage_step, last) if dist.rank() == 0 else None

    # ---- its steps
    skipped = SkippedSteps(method.module, job.recipe.train.max_skipped, progress.skipped)
    peak = stage.optimizer.base_lr * batch.total / 256
    warmup = round(stage.optimizer.warmup_epochs * order.steps_per_epoch)
    kept: host.KeptMemory | None = None
    started = time.perf_counter() - progress.seconds
    first, resumed_at = time.perf_counter(), progress.stage_step
    for step in steps:
        rate = schedule.learning_rate(step, total, peak, warmup, stage.optimizer.decay)
        engines.set_learning_rate(engine, rate)
        method.before_step(engine, step)
        watch.at("data", step=progress.step + 1)
        waiting = time.perf_counter()
        images = [next(batches) for _ in range(batch.accumulation)]
        meter.wait(time.perf_counter() - waiting)
        for one in images:
            bad.add(one.bad, step // order.steps_per_epoch)
        watch.at("forward")
        for loss, reports in method.losses(engine, [one.to(dist.device()) for one in images]):
            watch.at("backward")
            engine.backward(weight * (loss + sum(report.balance for report in reports.values())))
            watch.at("update")
            engine.step()
            watch.at("forward")
            meter.add(loss, reports, len(share))
        watch.at("update")
        skipped.check(engine.skipped_steps)
        progress.skipped = skipped.count
        method.after_step(engine, step + 1)
        progress.stage_step, progress.step = step + 1, progress.step + 1
        progress.seconds = time.perf_counter() - started

        watch.at("record")
        if line:
            line.step(step + 1)
        if (step + 1) % job.recipe.log.every_steps == 0 or step + 1 in (resumed_at + 1, last):
            pace = (time.perf_counter() - first) / (step + 1 - resumed_at)
            record = {"stage": name, "step": progress.step, "epoch": (step + 1) / order.steps_per_epoch}
            record |= (
                meter.read()
                | bad.read()
                | ({"skipped_steps": skipped.count} if skipped.count else {})
                | {"lr": rate}
                | engine.gradient_norms.read()
                | method.read()
            )
            progress.count_items(meter.items)
            record |= {"eta_seconds": pace * (last - step - 1), "time": time.time()}
            for sink in sinks:
                sink.write(record)
            if line:
                line.show(step + 1, record)
            kept = kept or host.KeptMemory()  # from the first step on
            kept.look()
        saver.look()
        watch.at("stop")
        if step + 1 < last and stop.agreed():
            watch.at("save")
            saver.finish(*_state(job, folder, engine, method))
            stop.done()
            raise StoppedError(f"stopped after step {step + 1} of stage {name}")
        if step + 1 < last and (step + 1) % job.recipe.checkpoint.every_steps == 0:
            watch.at("save")
            saver.start(*_state(job, folder, engine, method))

    # ---- what came out
    watch.at("evaluate")
    metrics = progress.measured | method.measure_end()
    metrics.pop("images", None)
    counts = {"steps": last, "images": last * batch.total, "seconds": progress.seconds, "last_step": progress.step}
    progress.done.append({"name": name, "kind": stage.kind, **counts, "metrics": metrics})
    progress.hands_over_average = method.hands_over_average
    watch.at("save")
    saver.finish(*_state(job, folder, engine, method))
    folder.start = saver.newest
    if line:
        line.close()
        say(f"{name} finished: " + "  ".join(f"{key} {100 * value:.2f} %" for key, value in metrics.items()))
    engine.destroy()


def _evaluate(job: Job, name: str, stage: Evaluate, folder: RunFolder) -> dict[str, float]:
    """Return the metrics of the newest checkpoint's weights; RUN/NAME.json gets the figures of every class."""
    classifier = build_classifier(job, stage)
    handover.load_previous(classifier, stage, folder)
    forward = lambda images: classifier(images)[0].float()  # noqa: E731
    (outcome,) = outcomes(forward, job.val, job.recipe.data, job.recipe.spec.image_size, stage.batch_size)
    metrics = outcome.metrics()
    # Lists by class number: names repeat, as ImageNet's "crane".
    by_class = {"classes": job.val.classes, "top1_by_class": outcome.per_class()}
    folder.write(f"{name}.json", metrics | by_class | {"confusion": outcome.confusion.tolist()})
    return metrics


def _state(job: Job, folder: RunFolder, engine: Any, method: Method) -> tuple[int, Any, dict[str, Any], list[int]]:
    """Return what `Saver` takes: the step, the stage's tensors, what is said of them, and the steps that stay."""
    progress = folder.progress
    progress.loss_scale = state.loss_scale(engine)
    about = {
        "progress": vars(progress),
        "recipe": job.recipe.model_dump(mode="json"),
        "ds_config": job.ds_config,
        "topology": _topology(job),
        "classes": job.val.classes,
    }
    ends = [entry["last_step"] for entry in progress.done if "last_step" in entry]
    return progress.step, state.pieces(engine, method.averaged), about, ends


def _topology(job: Job) -> dict[str, Any]:
    return {
        "world_size": job.world,
        "ep_sizes": job.ep_sizes,
        "zero_stage": engines.zero_stage(job.ds_config),
    }


def _moved(job: Job, before: dict[str, Any]) -> str:
    """Return what is another topology now than that which wrote a checkpoint; empty if nothing is."""
    changes = [
        f"{key.replace('_', ' ')} {before[key]} -> {now}"
        for key, now in _topology(job).items()
        if before.get(key, now) != now
    ]
    return f", written on another topology: {', '.join(changes)}" if changes else ""
