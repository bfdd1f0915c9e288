"""The `Conditioning` pytree: everything a denoiser may be told besides the noisy video. Absent parts cost nothing."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Conditioning:
    """Optional inputs of a network, each with the batch as its first axis.

    Text comes in groups: group 0 is the clip's caption, further groups are the captions of independent images that
    are appended to the clip for joint training.
    """

    tokens: Int[Array, "b g l"] | None = None  # word ids
    embeddings: Float[Array, "b g l c"] | None = None  # instead of ids: embeddings made beforehand
    text_mask: Bool[Array, "b g l"] | None = None  # True at real tokens; a row without any is the null caption
    null_embeddings: Float[Array, "b l c"] | None = None  # the null caption, where it is not a row without any
    null_mask: Bool[Array, "b l"] | None = None  # True at real tokens of that
    labels: Int[Array, " b"] | None = None  # class numbers; -1 is the null class
    low_resolution: Float[Array, "b t h w c"] | None = None  # already at the size of the video, in [-1, 1]
    augmentation: Float[Array, " b"] | None = None  # log-SNR of the noise added to low_resolution
    observed: Float[Array, "b t h w c"] | None = None  # known frames, zero elsewhere
    observed_mask: Float[Array, "b t h w 1"] | None = None  # 1 where observed
    image: Float[Array, "b 1 h w c"] | None = None  # latents of the picture that a video begins with; zeros: none
    # True where a frame exists; a padded one is seen by none and has no loss. Absent: all exist.
    frame_valid: Bool[Array, "b t"] | None = None
    # Features of outside tokens for `External` attention, by name: one group for the clip (g = 1) or one per frame.
    references: dict[str, Float[Array, "b g m c"]] = flax.struct.field(default_factory=dict)
    reference_masks: dict[str, Bool[Array, "b g m"]] = flax.struct.field(default_factory=dict)  # True: may be seen
    scalars: dict[str, Float[Array, " b"]] = flax.struct.field(default_factory=dict)  # e.g. fps

    def without_text(self, where: Bool[Array, " b"] | None = None) -> Conditioning:
        """The same with the null caption, the null class and no picture, for all samples or for those where `where` is
        True."""
        text_mask, labels, image, embeddings = self.text_mask, self.labels, self.image, self.embeddings
        if text_mask is labels is image is None:
            return self
        if self.null_embeddings is not None:
            gone = True if where is None else where[:, None, None]
            embeddings = jnp.where(jnp.expand_dims(gone, -1), self.null_embeddings[:, None], embeddings)
            text_mask = jnp.where(gone, self.null_mask[:, None], text_mask)
        elif text_mask is not None:
            text_mask = text_mask & (False if where is None else ~where[:, None, None])
        if labels is not None:
            labels = jnp.where(True if where is None else where, -1, labels)
        if image is not None:
            image = jnp.where(True if where is None else where[:, None, None, None, None], 0, image)
        return self.replace(text_mask=text_mask, labels=labels, image=image, embeddings=embeddings)

    def without_known(self) -> Conditioning:
        """The same with nothing known of the video."""
        known = {name: None if (a := getattr(self, name)) is None else jnp.zeros_like(a)
                 for name in ("observed", "observed_mask")}
        return self.replace(**known)

    def window(self, start: Int[Array, ""], length: int, frames: int) -> Conditioning:
        """The same for `length` frames from `start` on, which may be traced, of a video of `frames`: what belongs to
        single frames is cut, the rest stays."""
        def cut(a: Array | None) -> Array | None:
            if a is None or a.shape[1] != frames:
                return a
            return jax.lax.dynamic_slice_in_dim(a, start, length, axis=1)

        names = ("tokens", "embeddings", "text_mask", "low_resolution", "observed", "observed_mask", "frame_valid")
        return self.replace(
            **{name: cut(getattr(self, name)) for name in names},
            references={name: cut(a) for name, a in self.references.items()},
            reference_masks={name: cut(a) for name, a in self.reference_masks.items()})


def drop_text(key: Array, conditioning: Conditioning, probability: float) -> Conditioning:
    """Replace each sample's captions and class by the null ones, and its picture by none, with `probability`, for
    classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""
    given = [part for part in (conditioning.text_mask, conditioning.labels, conditioning.image) if part is not None]
    if not given or probability == 0:
        return conditioning
    return conditioning.without_text(jax.random.bernoulli(key, probability, (len(given[0]),)))
