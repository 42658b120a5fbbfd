"""A run folder with everything that a report is made of, written by hand, with any text in every place for a text."""

import json
import math
from pathlib import Path

import yaml

from sparse_mlp_ds.config import loading

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
LAYERS = ("4.moe_s", "4.moe_c")


def record(stage: str, step: int, **more: object) -> dict[str, object]:
    """One record of a log step, as a run with experts on a GPU writes it."""
    figures: dict[str, object] = {"stage": stage, "step": step, "epoch": step / 50, "loss": 4 / math.log(step + 2)}
    figures |= {"balance_loss": 1e-3, "images_per_second": 1000 + step % 7, "data_wait": 0.02, "lr": 1e-3 / step}
    for layer in LAYERS:
        figures |= {f"moe/{layer}/load_cv": 0.1, f"moe/{layer}/dropped": 0.02, f"moe/{layer}/dead": step % 2}
        figures |= {f"moe/{layer}/entropy": 0.7, f"moe/{layer}/items": [step, 2 * step, 3, 4]}
    figures |= {"gpu/memory_gib": 3.5, "gpu/mfu": 0.01 * (1 + step % 3), "grad_norm": 1.0, "grad_norm_dense": 0.9}
    return figures | {"eta_seconds": 1.0, "time": 1.7e9 + step} | more


def write(
    folder: Path, records: int = 40, text: str = "plain", classes: int = 3, val: str = "", **overrides: object
) -> Path:
    """Write a finished run.

    Args:
        folder: Where; is made.
        records: Number of log steps.
        text: Stands wherever a run folder has a text of a user or of the system.
        classes: Number of classes.
        val: Folder of the held-out images; empty for one that does not exist.
        overrides: Values of recipe keys, with `__` for the dots.
    """
    folder.mkdir(parents=True)
    settings = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in overrides.items()]
    tree = loading.load_recipe("digits", settings).model_dump(mode="json")
    tree["data"]["val"][0]["path"] = val or f"{text} tars"
    (folder / "config.yaml").write_text(yaml.safe_dump(tree | {"name": text}, sort_keys=False))
    (folder / "ds_config.json").write_text(json.dumps({"note": text}))
    rows = [record("finetune", step) for step in range(1, records + 1)]
    rows[-1] |= {"val/top1": 0.5, "val/top5": 0.9, "val/loss": 1.5, "bad/read": 2, f"own/{text}": 2.0}
    rows[0] |= {f"own/{text}": 1.0}
    result = {"stage": "finetune", "step": records, "result/top1": 0.5, "time": 1.0}
    lines = [*rows, result, {"stage": "evaluate", "step": records, "result/top1": 0.5, "time": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    phases = {"data": 1.0, "forward": 30.0, "backward": 60.0, "update": 8.0, "save": 1.0}
    best = {"stage": "finetune", "step": records, "stage_step": records, "top1": 0.5, "checkpoint": "step_9"}
    entries = [
        {
            "name": name,
            "kind": name,
            "steps": records,
            "images": 9,
            "seconds": 99.0,
            "metrics": {"top1": 0.5, text: 1.0},
        }
        for name in ("pretrain", "finetune", "evaluate")
    ]
    entries[1] |= {"phases": phases, "best": best}
    (folder / "summary.json").write_text(json.dumps({"recipe": text, "stages": entries}))
    confusion = [[5 if row == column else 1 for column in range(classes)] for row in range(classes)]
    outcome = {"top1": 0.5, "ece": 0.1, "classes": [f"{text} {n}" for n in range(classes)], "confusion": confusion}
    outcome |= {"top1_by_class": [0.5] * classes, "calibration": [[0.0, 0.0, 0.0], [10.0, 5.0, 7.5]]}
    (folder / "evaluate.json").write_text(json.dumps(outcome))
    start = dict.fromkeys(("time", "version", "python", "folder", "launcher", "data", "code", "cuda"), text)
    start |= {"step": 0, "git": {"commit": text, "dirty": True}, "packages": {text: text}, "command": [text, "--x"]}
    start |= {"hosts": [{"host": text, "ranks": [0], "device": text, "devices": 1}], "topology": {text: text}}
    (folder / "environment.json").write_text(json.dumps([start | {"resumed_from": text}, start]))
    (folder / "events.jsonl").write_text(json.dumps({"time": 1.7e9, "event": "ended", "message": text}) + "\n")
    log = [f"recipe digits, model {text}, run folder r", f"stage finetune: {text}", f"a.tar: sample 'k': {text}"]
    (folder / "train.log").write_text("".join(f"12:00:00 {line}\n" for line in log))
    (folder / "routes/finetune").mkdir(parents=True)
    (folder / "routes/finetune/classes-4.moe_s.svg").write_text(SVG)
    return folder
