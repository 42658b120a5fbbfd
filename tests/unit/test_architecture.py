"""Who may import whom, read from every file's source: a layer knows those below it and nothing above."""

import ast
import sys
from pathlib import Path

import pytest

import sparse_mlp_ds

PACKAGE = Path(sparse_mlp_ds.__file__).parent
FILES = {
    ".".join(("sparse_mlp_ds", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FORBIDDEN = {
    # folder -> what none of its files may import
    "checkpoints": ("moe", "models", "weights", "ssl", "train", "data", "log", "hub", "recipe", "job", "cli"),
    "moe": ("models", "checkpoints", "weights", "ssl", "train", "data", "log", "hub", "job", "cli"),
    "weights": ("ssl", "train", "data", "log", "hub", "job", "cli"),
    "models": ("checkpoints", "weights", "ssl", "train", "data", "log", "hub", "job", "cli"),
    "ssl": ("train", "data", "log", "hub", "job", "cli"),
    "data": ("models", "moe", "checkpoints", "weights", "ssl", "train", "log", "hub", "job", "cli"),
    "log": ("ssl", "train", "data", "hub", "job", "cli"),
    "hub": ("ssl", "train", "log", "job", "cli"),
    "train": ("hub", "cli"),
    "doctor": ("dist", "models", "moe", "checkpoints", "weights", "ssl", "train", "data", "log", "hub", "job", "cli"),
    # a process of its own beside every rank, up in a moment: nothing of the package but itself
    "sentry": (
        "dist",
        "errors",
        "models",
        "moe",
        "checkpoints",
        "weights",
        "ssl",
        "train",
        "data",
        "log",
        "hub",
        "job",
        "cli",
    ),
}
FOUNDATIONS = ("errors", "rng", "host", "files", "discovery", "rendezvous", "alike")
SPEAKS_TO_DEEPSPEED = {
    "sparse_mlp_ds.moe.expert_parallel",
    "sparse_mlp_ds.train.engine",
    "sparse_mlp_ds.train.gradient_norms",
    "sparse_mlp_ds.train.groups",
    "sparse_mlp_ds.train.state",
}


def imports(nodes):
    """Return the dotted names that import statements among `nodes` name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def everywhere(path):
    """All imports of a file, those inside functions too."""
    return imports(ast.walk(ast.parse(path.read_text())))


def at_import(path):
    """The imports that run when the file is imported."""
    nodes, found = [ast.parse(path.read_text())], []
    while nodes:
        node = nodes.pop()
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            found.append(node)
            nodes += ast.iter_child_nodes(node)
    return imports(found)


def test_every_file_is_read():
    assert len(FILES) > 40
    assert "sparse_mlp_ds.models.layers" in everywhere(FILES["sparse_mlp_ds.models.mixer"])
    assert "deepspeed.runtime.zero.config" in everywhere(FILES["sparse_mlp_ds.ds_config"])
    assert "deepspeed.runtime.zero.config" not in at_import(FILES["sparse_mlp_ds.ds_config"])


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_layer_does_not_import_those_above_it(folder):
    files = {name: path for name, path in FILES.items() if name.startswith(f"sparse_mlp_ds.{folder}.")}
    assert files
    broken = [
        f"{name} imports {imported}"
        for name, path in files.items()
        for imported in sorted(everywhere(path))
        if imported.split(".")[0] == "sparse_mlp_ds" and imported.split(".")[1:2] in [[f] for f in FORBIDDEN[folder]]
    ]
    assert broken == []


@pytest.mark.parametrize("module", FOUNDATIONS)
def test_the_foundations_stand_on_errors_alone(module):
    own = {name for name in everywhere(FILES[f"sparse_mlp_ds.{module}"]) if name.startswith("sparse_mlp_ds")}
    assert all(name.startswith("sparse_mlp_ds.errors") for name in own), own


def test_a_sentry_imports_nothing_large():
    own = {name for name in FILES if name.startswith("sparse_mlp_ds.sentry")}
    imported = {i.split(".")[0] for name in own for i in everywhere(FILES[name])}
    assert imported <= {"sparse_mlp_ds", "psutil"} | set(sys.stdlib_module_names)


def test_a_host_that_looks_at_itself_imports_torch_only_for_its_devices():
    looking = ("doctor.__main__", "doctor.facts", "alike", "discovery", "host", "errors")
    imported = {i.split(".")[0] for name in looking for i in at_import(FILES[f"sparse_mlp_ds.{name}"])}
    assert imported <= {"sparse_mlp_ds"} | set(sys.stdlib_module_names)


def test_deepspeed_is_spoken_to_in_few_files():
    speaking = {name for name, path in FILES.items() if any(i.split(".")[0] == "deepspeed" for i in everywhere(path))}
    assert speaking == SPEAKS_TO_DEEPSPEED | {"sparse_mlp_ds.ds_config"}
    importing = {name for name in speaking if any(i.split(".")[0] == "deepspeed" for i in at_import(FILES[name]))}
    assert importing == SPEAKS_TO_DEEPSPEED


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_at_most_300_lines(name):
    assert len(FILES[name].read_text().splitlines()) <= 300


def test_no_import_leads_back_to_where_it_started():
    edges = {name: (everywhere(path) & FILES.keys()) - {"sparse_mlp_ds", name} for name, path in FILES.items()}
    while leaves := {name for name, imported in edges.items() if not imported & edges.keys()}:
        edges = {name: imported for name, imported in edges.items() if name not in leaves}
    assert not edges, f"a cycle among {sorted(edges)}"
