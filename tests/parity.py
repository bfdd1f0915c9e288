"""Packages that are only compared with, in a folder of their own (`make test-full`): nothing else meets them."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "parity"  # of requirements/parity-no-deps.txt
_kept = []  # declarations hold as long as their object


def peer(name):
    """The module of a package that is compared with, or a skipped test."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    if not _kept and "+cpu" in torch.__version__:
        # torchvision from PyPI is built for CUDA. Next to a CPU build of torch its library does not define these
        # operators, and its import fails unless they are declared before; transformers imports it where it finds it.
        _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _kept[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip(name, reason="compares with a package of requirements/parity-no-deps.txt")
