"""Packaging; the versions that are tested are in requirements.txt, tool settings in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "sparse_mlp_ds/__init__.py").read_text()).group(1)

setup(
    name="sparse_mlp_ds",
    version=version,
    description="Distributed training of Sparse-MLP vision models with DeepSpeed's expert parallelism",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["sparse_mlp_ds", "sparse_mlp_ds.*"]),
    package_data={"sparse_mlp_ds": ["recipes/*.yaml", "sweeps/*.yaml"]},
    install_requires=[
        "torch>=2.13",
        "deepspeed>=0.19.8,<0.20",
        "mpi4py>=4",
        "webdataset>=1.0",
        "pyyaml>=6",
        "wandb>=0.20",
        "kornia>=0.8",
        "numpy>=2",
        "pillow>=11",
        "psutil>=6",
        "pydantic>=2.10",
        "rich>=13",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "braceexpand>=0.1.7",
        "fsspec>=2024.6",
        "tensorboard>=2.17",
        "matplotlib>=3.9",
    ],
    extras_require={
        "hub": ["huggingface_hub>=0.26"],
        "test": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6", "ruff"],
    },
    entry_points={"console_scripts": ["sparse-mlp-ds = sparse_mlp_ds.cli:main"]},
)
