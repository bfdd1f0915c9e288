"""torchvision's Inception-v3 with the changes for FID."""

import types

from torch.nn import functional


def inception_like(models, variant):
    """`models` is torchvision's; for FID with 1008 classes, averages that leave the padding out, and a maximum in the
    last block, by replacing the functions its blocks call."""
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
        original = type(block)._forward
        copy = types.FunctionType(original.__code__, original.__globals__ | {"F": blocks_call(average)})
        block._forward = types.MethodType(copy, block)

    for name, block in model.named_children():
        if name.startswith("Mixed_") and name not in ("Mixed_6a", "Mixed_7a"):
            replaced(block, functional.max_pool2d if name == "Mixed_7c" else without_padding)
    return model
