"""Tars of five classes, and a run that reads them."""

import json

from sparse_mlp_ds.shards.scan import make_index
from sparse_mlp_ds.train import main as train
from tests.helpers.tars import sample, write_tar

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def shards(folder, names):
    """A tar of two images of each of five classes, or of fewer if there are fewer names."""
    members = [part for n in range(10) if n // 2 < len(names) for part in sample(f"{n:02d}", n // 2)]
    write_tar(folder / "a-0.tar", *members)
    make_index(folder, names)
    return folder


def check(capsys, folder, *overrides, resume="never", **sections):
    """Call train.py --check on a small recipe."""
    data = {"train": "train", "val": "val", "classes": 5, "workers": 0}
    optimizer = {"name": "adamw", "base_lr": 0.001}
    stage = {"kind": "supervised", "epochs": 1, "batch_size": 2, "optimizer": optimizer, "view": {}}
    tree = {"name": "tiny", "data": data, "model": {"name": "sparse_mlp_digits"}, "moe": {"group_images": 2}}
    (folder / "recipe.yaml").write_text(json.dumps(tree | {"stages": {"train": stage}} | sections))
    capsys.readouterr()
    arguments = ["--ds_config", "moe", "--recipe", str(folder / "recipe.yaml"), "--resume", str(resume), "--check"]
    code = train.main([*arguments, *(part for override in overrides for part in ("--set", override))])
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()
