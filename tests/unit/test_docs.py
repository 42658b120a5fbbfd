"""The docs name files that exist, and the map in docs/design.md names all of the package."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "sparse_mlp_ds"
FOLDERS = ("docs", "launcher", "docker", "benchmarks")
PAGES = sorted([*REPOSITORY.glob("*.md"), *(path for folder in FOLDERS for path in REPOSITORY.glob(f"{folder}/*.md"))])
ELSEWHERE = {"models/mlp_mixer.py"}
"""Files of other projects that the docs speak of."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pages
def test_files_that_are_named_exist(page):
    """Those of a folder of the repository or of the package, with or without their extension."""
    named = re.findall(r"`([\w.-]+/[\w./-]+)`", page.read_text())
    places = [(root, name) for name in named for root in (REPOSITORY, PACKAGE) if (root / name.split("/")[0]).is_dir()]
    missing = {name for _, name in places if not name.startswith(("data/", "runs/"))} - ELSEWHERE
    missing -= {name for root, name in places if (root / name).exists() or (root / f"{name}.py").exists()}
    assert sorted(missing) == []


def test_the_map_names_every_folder_and_file_of_the_package():
    text = (REPOSITORY / "docs/design.md").read_text().partition("## Map")[2].split("```")[1]
    room, words = "", {"": set()}
    for line in text.splitlines():
        if start := re.match(r"  (\w+)/ ", line):
            room = start[1]
        words.setdefault(room, set()).update(re.findall(r"\w+", line))
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    missing = [
        str(path) for path in paths if path.stem not in words.get(path.parts[0] if len(path.parts) > 1 else "", ())
    ]
    assert sorted(missing) == []
