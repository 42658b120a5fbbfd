"""Which files a version of the code consists of. How differences are named: test_findings.py and test_preflight.py."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import sparse_mlp_ds
from sparse_mlp_ds.distributed import consistency

PACKAGE = Path(sparse_mlp_ds.__file__).parent


def test_the_code_of_a_version_is_every_module_of_every_room(tmp_path):
    files = consistency.code_files(tmp_path / "no_script.py")
    rooms = {folder.name for folder in PACKAGE.iterdir() if any(folder.glob("*.py"))}
    assert {path.relative_to(PACKAGE).parts[0] for path in files if path.parent != PACKAGE} == rooms
    assert len(files) == len(set(files)) == len(list(PACKAGE.rglob("*.py"))) > 100
    for module in ("train.loop", "moe.layer", "distributed.consistency"):
        assert Path(importlib.util.find_spec(f"sparse_mlp_ds.{module}").origin) in files
    program = tmp_path / "train.py"
    program.touch()
    assert consistency.code_files(program) == [program, *files]


def test_a_change_in_any_room_is_a_different_version(tmp_path):
    copy = tmp_path / "sparse_mlp_ds"
    shutil.copytree(PACKAGE, copy, ignore=lambda folder, names: [n for n in names if n == "__pycache__"])

    def digest() -> str:
        code = "from pathlib import Path; from sparse_mlp_ds.distributed import consistency as c; print(c.code(Path()))"
        asked = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return asked.stdout

    digests = [digest(), digest()]
    for file in ("train/loop.py", "errors.py", "distributed/host.py"):
        (copy / file).write_text((copy / file).read_text() + "# changed\n")
        digests.append(digest())
    assert digests[0] == digests[1] and len(set(digests)) == 4
