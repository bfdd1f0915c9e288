"""Captions for stages that read embeddings, by the text encoder that their embeddings were made with."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.data.embeddings import EncoderFolder, WithEmbeddings
from vdm_jax.data.text_encoding import CaptionEncoder
from vdm_jax.errors import UserError
from vdm_jax.stages.stage import Experiment


class RunEncoder:
    """The text encoder of an experiment, as the generator takes it (`prompts.Encoder`). Weights are read with the
    first captions.

    Gives what the set of embeddings that the stages were trained on would: vectors as float16 holds them, cut or padded
    to the length of training.
    """

    def __init__(self, spec: EncoderFolder, experiment: Experiment):
        data = experiment.data
        self.spec, self.length = spec, data.length if isinstance(data, WithEmbeddings) else None
        self.widths = {stage.network.text.width for stage in experiment.stages if hasattr(stage.network.text, "width")}
        # Without data the experiment is a released model, for which no text is the empty one.
        self.empty_encoded = not isinstance(data, WithEmbeddings) or data.empty == "encoded"

    def __call__(
        self, captions: Sequence[str], negative: Sequence[str] | None, masked_video: MaskedVideo | None
    ) -> dict[str, np.ndarray]:
        """`embeddings` and `text_mask` of captions; where the empty text was encoded in training also
        `null_embeddings` and `null_mask` of the negative captions, or of the empty text.

        Raises `UserError` for an encoder that is missing or another than that of training, and for negative captions of
        stages that never saw an encoded null caption.
        """
        if negative is not None and not self.empty_encoded:
            raise UserError(f"negative={list(negative)[:1]} for stages whose null caption is learned; permitted: None, "
                            "or stages trained with WithEmbeddings(empty='encoded')")
        vectors, mask = self._encoded(captions)
        found = {"embeddings": vectors, "text_mask": mask}
        if self.empty_encoded:
            null, null_mask = self._encoded(negative or [""], vectors.shape[1])
            one = negative is None
            found |= {"null_embeddings": null[0] if one else null, "null_mask": null_mask[0] if one else null_mask}
        return found

    def _encoded(
        self, texts: Sequence[str], length: int | None = None
    ) -> tuple[Float[np.ndarray, "B L C"], Bool[np.ndarray, "B L"]]:
        vectors = self.captions(texts)
        length = self.length or length or max(map(len, vectors))
        out = np.zeros((len(texts), length, vectors[0].shape[1]), np.float16)
        mask = np.zeros(out.shape[:2], bool)
        for row, (text, found) in enumerate(zip(texts, vectors, strict=True)):
            if text or self.empty_encoded:
                count = min(len(found), length)
                out[row, :count], mask[row, :count] = found[:count], True
        return out, mask

    @functools.cached_property
    def captions(self) -> CaptionEncoder:
        """The encoder itself, read when it is asked for first."""
        spec = self.spec
        found = CaptionEncoder(spec.path, length=spec.length, dtype=spec.dtype)
        if spec.sha256 not in ("", found.folder.sha256):
            raise UserError(f"encoder {spec.path} has weights of hash {found.folder.sha256!r}, and the run was trained "
                            f"with {spec.sha256!r}; permitted: that encoder (--encoder FOLDER)")
        if spec.padding != found.folder.padding:
            raise UserError(f"encoder {spec.path} gives embeddings of padding={found.folder.padding!r}, and those of "
                            f"the run are of {spec.padding!r}; permitted: the folder of a pipeline that encodes as the "
                            "set was made (--encoder FOLDER), or embeddings made again",
                            "RunEncoder.padding")
        if self.widths and found.width not in self.widths:
            raise UserError(f"encoder {spec.path} has width {found.width}, and the stages read embeddings of "
                            f"{', '.join(map(str, sorted(self.widths)))}; permitted: an encoder of that width")
        return found
