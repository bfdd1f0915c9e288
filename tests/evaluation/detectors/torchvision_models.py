"""torchvision for comparisons: imported beside a CPU build of torch, and its Inception with the changes for FID."""

import pytest


def torchvision():
    """(torch, torchvision.models), or a skipped test. The package from PyPI is built for CUDA and registers operators
    that its library then does not define beside a CPU torch, unless their schemas are there before."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch (requirements/peers.txt)")
    if not hasattr(torchvision, "library") and "cu" not in torch.__version__:
        torchvision.library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    reason = "compares with torchvision (requirements/parity-no-deps.txt)"
    return torch, pytest.importorskip("torchvision.models", reason=reason)


def inception_like(variant):
    """torchvision's Inception-v3; for FID with 1008 classes, averages that leave the padding out, and a maximum in the
    last block, by replacing the functions its blocks call."""
    torch, models = torchvision()
    functional = torch.nn.functional
    model = models.inception_v3(weights=None, aux_logits=variant == "torchvision", init_weights=True,
                                num_classes=1000 if variant == "torchvision" else 1008).eval()
    if variant == "torchvision":
        return model

    def blocks_call(average):
        """A copy of the module's functions in which `F.avg_pool2d` is another one."""
        names = {name: getattr(functional, name) for name in ("relu", "max_pool2d")}
        return type("Functional", (), {name: staticmethod(value) for name, value in
                                       (names | {"avg_pool2d": average}).items()})

    def without_padding(x, **rest):
        return functional.avg_pool2d(x, **rest, count_include_pad=False)

    def replaced(block, average):
        """The block's forward with other functions; `_forward` reads F from its module's globals."""
        import types

        original = type(block)._forward
        copy = types.FunctionType(original.__code__, original.__globals__ | {"F": blocks_call(average)})
        block._forward = types.MethodType(copy, block)

    for name, block in model.named_children():
        if name.startswith("Mixed_") and name not in ("Mixed_6a", "Mixed_7a"):
            replaced(block, functional.max_pool2d if name == "Mixed_7c" else without_padding)
    return model
