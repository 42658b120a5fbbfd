"""A sweep of two models and three seeds, and what its finished runs leave."""

import json

import numpy as np
import yaml

from sparse_mlp_ds.log import image_hits
from sparse_mlp_ds.sweep import gather, plan, table
from sparse_mlp_ds.sweep.gather import Gathered

SWEEP = {
    "name": "tried",
    "recipe": "digits",
    "seeds": [0, 1, 2],
    "set": {"stages.pretrain": None, "stages.evaluate": None, "stages.finetune.kind": "supervised"},
    "variants": {"sparse": {}, "mixer": {"model": {"name": "mixer_digits"}}},
    "metrics": ["finetune.top1"],
}
RIGHT = {"sparse": [(0, 8), (0, 7), (0, 9)], "mixer": [(2, 8), (2, 7), (2, 9)]}
"""Of each seed, the range of the ten held-out images that are classified correctly."""


def planned(folder, **changes):
    path = folder / "tried.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
    sweep = plan.load(str(path))
    return sweep, plan.runs(sweep)


def finish(folder, run, commit="a" * 40, data="d", images=600, dirty=False):
    """Leave what a finished run of six steps of two epochs leaves; step 3 was taken twice."""
    target = folder / run.name
    target.mkdir(parents=True)
    (target / "config.yaml").write_text(yaml.safe_dump(run.recipe.model_dump(mode="json")))
    first, last = RIGHT[run.setting][run.seed]
    marks = np.full(10, image_hits.WRONG)
    marks[first:last] = image_hits.RIGHT
    (target / "finetune.hits.json").write_text(json.dumps(image_hits.packed(marks, data)))
    entry = {"name": "finetune", "steps": 6, "last_step": 6, "images": images, "seconds": 100.0 + run.seed}
    entry["metrics"] = {"top1": (last - first) / 10, "loss": 1.25, "ece": 0.1}
    (target / "summary.json").write_text(json.dumps({"stages": [entry]}))
    layer = "moe/3.moe_c/"
    routing = {f"{layer}load_cv": 0.5, f"{layer}dropped": 0.25, f"{layer}dead": 1, f"{layer}entropy": 0.75}
    lines = []
    for step, loss in ((1, 9.0), (3, 8.0), (3, 4.0), (4, 3.0), (6, 1.5)):
        figures = {"stage": "finetune", "step": step, "epoch": step / 3, "loss": loss, "eta_seconds": 1.0}
        lines.append(figures | (routing if run.setting == "sparse" else {}))
    lines[2] |= {"val/top1": 0.5, "val/loss": 2.0}
    lines.append({"stage": "finetune", "step": 6, "result/top1": 0.5})
    (target / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"stage": "fi')
    start = {"git": {"commit": commit, "dirty": dirty}, "hosts": [{"device": "CPU"}]}
    (target / "environment.json").write_text(json.dumps([start]))


def tables(sweep, runs, folder):
    """The tables as Markdown, of a results file that is up to date; pictures take longer to draw."""
    done = [run for run in runs if (folder / run.name).exists()]
    Gathered(sweep, runs, folder).update(done)
    return table.markdown(gather.page_of_file(folder / "results.jsonl", sweep, runs))


def text_of(page):
    return "\n".join(page.remarks)


def finished(folder):
    """Sweep, runs and folder, with every run finished."""
    sweep, runs = planned(folder)
    for run in runs:
        finish(folder / "out", run)
    return sweep, runs, folder / "out"
