"""How the tensors of image prompt adapters are called in the files of their authors (Ye et al. 2023, arXiv 2308.06721).
"""

from __future__ import annotations

from vdm_jax.networks.image_prompt import ATTENTIONS, MAPS, NAMES, ImagePromptAdapter
from vdm_jax.weights.tensor_names import Lines, Names, prefixed

_LAYER = r"image_proj.layers.\1"
_RESAMPLER = {"norm_states": "0.norm1", "norm_queries": "0.norm2", "attention/query": "0.to_q",
              "attention/key_value": "0.to_kv", "attention/out": "0.to_out", "norm_feed_forward": "1.0",
              "feed_forward/expand": "1.1", "feed_forward/out": "1.3"}


def adapter_names(config: ImagePromptAdapter) -> Names:
    """Of an adapter. Layers of keys and values have odd numbers: those between them are self-attentions. A perceptron's
    norm has a number in adapters called "full" and a name in those of faces."""
    spec = config.projection
    factors: Lines = tuple((f"layer_{i}_{attention}_{name}/{part}", f"ip_adapter.{2 * i + k}.to_{kind}_lora.{part}")
                           for i in range(len(config.layers) if config.rank else 0)
                           for k, attention in enumerate(ATTENTIONS) for name, kind in zip(MAPS, "q k v out".split(),
                                                                                         strict=True)
                           for part in ("down", "up"))
    layers: Lines = tuple((f"layer_{i}_{name}", f"ip_adapter.{2 * i + 1}.to_{kind}_ip")
                          for i in range(len(config.layers)) for name, kind in zip(NAMES, ("k", "v"), strict=True))
    own = {name: name for name in ("proj", "norm", "proj_in", "proj_out", "norm_out")}
    if spec.perceptron:
        own = {"inner": "proj.0", "proj": "proj.2", "norm": "norm" if spec.vectors == "faces" else "proj.3"}
    return Names(modules=(*layers, *factors, *prefixed(r"projection/layer_(\d+)", _LAYER, _RESAMPLER),
                          *prefixed("projection", "image_proj", own)),
                 tensors=(("projection/latents", "image_proj.latents"),))
