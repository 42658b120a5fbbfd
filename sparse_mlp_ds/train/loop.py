"""The run, top to bottom: stages in order, and the steps of a training stage."""

import time
from collections.abc import Callable

from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.checkpoints.saver import Saver
from sparse_mlp_ds.config.stages import AnyTrainingStage, Evaluate
from sparse_mlp_ds.data import loader
from sparse_mlp_ds.data.bad_samples import BadSampleCounter
from sparse_mlp_ds.distributed import host, process_group
from sparse_mlp_ds.log import results
from sparse_mlp_ds.log.console import ProgressLine, final_table, metric_text, say
from sparse_mlp_ds.log.meter import Meter
from sparse_mlp_ds.log.recorder import Recorder
from sparse_mlp_ds.log.sinks import Sink, open_sinks
from sparse_mlp_ds.train import compiled, engine_state, evaluate_stage, initial_weights, saving, schedule, stage_results
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.device_use import DeviceUse
from sparse_mlp_ds.train.going_back import goes_back
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.loss_spikes import LossSpikes
from sparse_mlp_ds.train.mirroring import mirroring
from sparse_mlp_ds.train.phase_times import PhaseTimes
from sparse_mlp_ds.train.plan import moved, plan
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.train.run_records import events_alone
from sparse_mlp_ds.train.run_report import write_report
from sparse_mlp_ds.train.skipped_steps import SkippedSteps
from sparse_mlp_ds.train.stage_batches import load_batches
from sparse_mlp_ds.train.stage_methods import METHODS
from sparse_mlp_ds.train.stage_routes import write_routes
from sparse_mlp_ds.train.step_profiler import StepProfiler
from sparse_mlp_ds.train.stop_request import StopRequest
from sparse_mlp_ds.train.training import Run, Training
from sparse_mlp_ds.train.validation import Validation
from sparse_mlp_ds.watchdog.client import Watch
from sparse_mlp_ds.watchdog.events import Events


def run(job: Job, watch: Watch, opened: Callable[[RunFolder], Events] = events_alone) -> None:
    """Go through the recipe's stages, from wherever an earlier try stopped, and print what came out.

    opened: is called on rank 0 as soon as the run folder belongs to this run; returns what takes the run's events.
    """
    engines.init_deepspeed()
    folder = RunFolder(job)
    events = opened(folder) if process_group.rank() == 0 else None
    with mirroring(folder, watch) as written:
        checkpoint = job.recipe.checkpoint
        saver = Saver(folder.checkpoints, checkpoint.keep, checkpoint.keep_every, warn=say, written=written)
        stop = StopRequest(folder.path)
        if writes := process_group.rank() == 0:
            say(plan(job))
            if folder.start:
                say(f"resuming from {folder.start.path}{moved(job, folder.start.manifest.get('topology', {}))}")
        sinks = _open_sinks(job, folder, folder.progress.step) if writes else []
        services = Run(job, folder, saver, stop, watch, sinks, events)
        for name, stage in job.recipe.stages.items():
            if folder.progress.is_done(name):
                continue
            watch.at("start", name, folder.progress.step)
            if isinstance(stage, Evaluate):
                watch.at("evaluate")
                folder.progress.done.append(evaluate_stage.evaluate(job, folder, name, stage))
                _record_result(services)
            else:
                _train(services, name, stage)
            folder.write_summary()
        if writes and job.recipe.log.report:
            watch.at("save")
            write_report(folder.path)  # before the event, so that a command that is told of the end finds it
        if events:
            events.add("ended", f"all stages of {job.recipe.name} are done")
        for sink in sinks:
            sink.close()
        if process_group.rank() == 0:
            final_table(folder.write_summary(), str(folder.path))


def _train(run: Run, name: str, stage: AnyTrainingStage) -> None:
    """Train one stage to its end, saving on the way and going back before loss spikes if the recipe says so.

    Raises StoppedError on request.
    """
    while (step := _train_to_spike(run, name, stage)) is not None:
        for sink in run.sinks:
            sink.close()
        if process_group.rank() == 0:
            run.sinks[:] = _open_sinks(run.job, run.folder, step)


def _open_sinks(job: Job, folder: RunFolder, step: int) -> list[Sink]:
    """Return where records go, from the step on that the run stands at."""
    return open_sinks(folder.path, job.recipe, step, [entry["name"] for entry in folder.progress.done])


def _train_to_spike(run: Run, name: str, stage: AnyTrainingStage) -> int | None:
    """Train a stage to its end and return None; or return the step of the run that it has gone back to for a spike."""
    training = _start(run, name, stage)
    for step in training.steps:
        training.profiler.begin_step(step + 1)
        batches = _next_batches(run, training, step)
        rate = _optimizer_step(run, training, step, batches)
        training.profiler.end_step(step + 1)
        run.folder.progress.advance(time.perf_counter() - training.started)
        _validate(run, training)
        _record(run, training, rate)
        if goes_back(run, training):
            return run.folder.progress.step
        if _ends_early(training):
            break
        saving.save_or_stop(run, training)
    _finish(run, training)
    return None


def _start(run: Run, name: str, stage: AnyTrainingStage) -> Training:
    """Build what a stage trains and what it reads, from its beginning or from where it stopped."""
    job, progress = run.job, run.folder.progress
    method = METHODS[type(stage)](job, name)
    resumes = progress.stage == name
    if not resumes:
        initial_weights.load_start(method.receives_weights, stage, job)
        if stage.init_from is None:
            initial_weights.load_previous(method.receives_weights, stage, run.folder)
        method.begin()
    ds_config = job.ds_config if method.clips else job.ds_config.without_clipping()
    engine = engines.build(method.module, stage.optimizer, job.batches[name], ds_config, method.rate_scale)
    compiled.compile_blocks(method.networks if job.compiles else [])
    if resumes and run.folder.start:
        updates = progress.stage_step - progress.skipped
        engine_state.restore(engine, method.companion, Reader(run.folder.start), updates)
        engine_state.restore_loss_scale(engine, progress.loss_scale)
    else:
        progress.begin(name)
        progress.measured = method.measure_start()
    progress.learn_from(method.teacher_digest, resumes)
    order, progress.data, progress.negatives = job.order(name), job.data_fingerprint, job.negatives(name)
    steps = range(progress.stage_step, job.last_step(name))
    batches = load_batches(job, name, map(progress.data_step, steps), method)
    started = time.perf_counter() - progress.seconds
    line = ProgressLine(name, steps.start, steps.stop) if process_group.rank() == 0 else None
    return Training(
        name=name,
        stage=stage,
        method=method,
        engine=engine,
        order=order,
        total=job.steps(name),
        steps=steps,
        batches=batches,
        bad=BadSampleCounter(job.recipe.data.bad_limit, order.samples),
        meter=Meter({kind: moe.top_k for kind, moe in job.recipe.spec.experts.items()}, job.samples),
        skipped=SkippedSteps(method.module, job.recipe.train.max_skipped, progress.skipped),
        spikes=LossSpikes(job.recipe.train.loss_spike, progress),
        profiler=StepProfiler(job.recipe.log.profile, run.folder.path, name),
        recorder=Recorder(name, steps, job.recipe.log.every_steps, run.sinks, line),
        validation=Validation(stage, order.steps_per_epoch, steps.stop, progress),
        device_use=DeviceUse(job, name),
        phases=PhaseTimes(run.watch, progress.phases, process_group.device()),
        started=started,
    )


def _next_batches(run: Run, training: Training, step: int) -> list[loader.Batch]:
    """Return the micro-batches of one optimizer step, on the device."""
    training.phases.at("data", step=run.folder.progress.step + 1)
    waiting = time.perf_counter()
    batches = [next(training.batches) for _ in range(run.job.batches[training.name].accumulation)]
    training.meter.wait(time.perf_counter() - waiting)
    for batch in batches:
        training.bad.add(batch.bad_samples, run.folder.progress.data_step(step) // training.order.steps_per_epoch)
    return [batch.to(process_group.device()) for batch in batches]


def _optimizer_step(run: Run, training: Training, step: int, batches: list[loader.Batch]) -> float:
    """Take one optimizer step, numbered from 0 within the stage, and return its learning rate."""
    engine, method, phases = training.engine, training.method, training.phases
    phases.count("update")  # until the forward pass: the learning rate, and a momentum network
    batch, optimizer = run.job.batches[training.name], training.stage.optimizer
    weight = batch.weight(process_group.rank(), process_group.world_size())
    samples = len(batch.share(process_group.rank(), process_group.world_size()))
    warmup = optimizer.warmup(training.order.steps_per_epoch)
    peak = optimizer.peak_lr(batch.total)
    rate = schedule.learning_rate(step, training.total, peak, warmup, optimizer.decay, optimizer.final_lr)
    engines.set_learning_rate(engine, rate)
    if method.moves_companion_first:
        run.saver.hold()
    method.before_step(engine, step)
    method.is_recorded = training.recorder.is_due(step + 1)
    training.spikes.begin_step()
    phases.at("forward")
    for loss, reports in method.losses(engine, batches):
        phases.at("backward")
        engine.backward(weight * (loss + sum(report.balance for report in reports.values())))
        phases.at("update")
        run.saver.hold()
        engine.step()
        phases.at("forward")
        training.meter.add(loss, reports, samples)
        training.spikes.add(loss, samples)
    phases.at("update")
    training.skipped.check(engine.skipped_steps)
    run.folder.progress.skipped = training.skipped.count
    method.after_step(engine, step + 1)
    return rate


def _validate(run: Run, training: Training) -> None:
    """Validate the step just taken if it is due. Collective at the same steps on all ranks."""
    if training.validation.is_due():
        training.phases.at("evaluate")
        began = time.perf_counter()
        training.validation.take(training.method.measure_end())
        training.meter.leave_out(time.perf_counter() - began)


def _ends_early(training: Training) -> bool:
    """Say whether the stage ends after the step just taken, and print why."""
    reason = training.validation.reason_to_end()
    if reason and process_group.rank() == 0:
        say(reason)
    return bool(reason)


def _record(run: Run, training: Training, rate: float) -> None:
    """Write a record if one is due. Collective at the same steps on all ranks."""
    progress, recorder = run.folder.progress, training.recorder
    training.phases.at("record")
    recorder.move(progress.stage_step)
    validated = training.validation.figures()
    if not (validated or recorder.is_due(progress.stage_step)):
        return
    figures = training.meter.read(training.method.sums()) | training.bad.read() | validated
    figures["loss"] /= training.method.terms
    figures |= training.device_use.figures(figures[f"{run.job.samples}_per_second"])
    if training.skipped.count:
        figures |= {"skipped_steps": training.skipped.count}
    figures |= {"lr": rate} | training.engine.gradient_norms.read()
    figures |= training.method.figures(training.meter.further)
    progress.count_items(training.meter.items)
    recorder.write(progress.stage_step, progress.step, progress.stage_step / training.order.steps_per_epoch, figures)
    training.memory = training.memory or [host.KeptMemory()]
    training.memory[0].look()


def _finish(run: Run, training: Training) -> None:
    """Measure what the stage reached, save it, and say so."""
    progress, method = run.folder.progress, training.method
    training.phases.at("evaluate")
    metrics = progress.measured | (training.validation.measured() or method.measure_end())
    metrics, _ = stage_results.split(metrics)
    training.phases.count("save")
    if method.outcome is not None:
        run.folder.write(f"{training.name}.json", stage_results.of_training(method.outcome, run.job.classes))
        stage_results.write_hits(run.folder, training.name, method.outcome, run.job.val)
    steps, batch = progress.stage_step, run.job.batches[training.name].total
    counts = {"steps": steps, run.job.samples: steps * batch, "seconds": progress.seconds, "last_step": progress.step}
    entry = {"name": training.name, "kind": training.stage.kind, **counts, "metrics": metrics}
    progress.done.append(entry | training.validation.end() | {"phases": dict(progress.phases)})
    progress.hands_over_average = method.hands_over_companion
    _record_result(run)  # before the save: if that fails, the record goes when the run starts again
    saving.save(run, training, run.saver.finish)
    run.folder.start = run.saver.newest
    training.recorder.close()
    if process_group.rank() == 0:
        figures = "  ".join(metric_text(key, value) for key, value in metrics.items())
        say(f"{training.name} finished: {figures}" if figures else f"{training.name} finished")
    run.watch.at("evaluate")
    write_routes(run.job, training.name, method, run.folder)
    training.close()


def _record_result(run: Run) -> None:
    """Write a record of what the stage reached that was just finished."""
    progress = run.folder.progress
    for sink in run.sinks:
        sink.write(results.record(progress.done[-1], progress.step))
