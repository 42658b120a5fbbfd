"""What benchmarks print with --json is JSON alone, so nothing that they import may print, as DeepSpeed does."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LAST_LINE = 'help="print the figures as JSON in the last line"'
"""How the option of a benchmark reads whose ranks print on the same standard output."""


def test_importing_them_prints_nothing():
    sources = {path.stem: path.read_text() for path in (REPOSITORY / "benchmarks").glob("*.py")}
    modules = sorted(name for name, text in sources.items() if '"--json"' in text and LAST_LINE not in text)
    assert "scaling" in modules
    imports = "; ".join(f"import benchmarks.{name}" for name in modules)
    done = subprocess.run([sys.executable, "-c", imports], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
