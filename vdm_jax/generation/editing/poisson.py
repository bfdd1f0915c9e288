"""Pictures from colours and gradients (Perez et al. 2003, "Poisson image editing"; with colours as a second term: Bhat
et al. 2008, "Fourier analysis of the 2D screened Poisson equation for gradient domain problems").

Of two pictures of the same thing the gradients of each pixel are taken from one: where the choice changes, their
colours may jump, but no gradient says so.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.metrics.flow import opencv

# Weights of gradients of lightness and of the two colours of CIELAB against the channels themselves, as in the authors'
# code of Rerender-A-Video
GRADIENTS = (2.5, 0.5, 0.5)


def blended_gradients(
    picture: Float[np.ndarray, "H W 3"], one: Float[np.ndarray, "H W 3"], other: Float[np.ndarray, "H W 3"],
    first: Bool[np.ndarray, "H W"],
) -> Float[np.ndarray, "H W 3"]:
    """The picture that is close to one, and whose gradients are close to those of `one` where `first` and else to those
    of `other`, in CIELAB. All are RGB in [0, 255]."""
    lab, of_one, of_other = (_to_lab(each) for each in (picture, one, other))
    channels = []
    for channel, weight in enumerate(GRADIENTS):
        down, right = (np.where(first[places], np.diff(of_one[..., channel], axis=axis),
                                np.diff(of_other[..., channel], axis=axis))
                       for axis, places in ((0, np.s_[:-1]), (1, np.s_[:, :-1])))
        channels.append(screened_poisson(lab[..., channel], down, right, weight))
    return _to_rgb(np.stack(channels, -1))


def screened_poisson(
    values: Float[np.ndarray, "H W"], down: Float[np.ndarray, "_ W"], right: Float[np.ndarray, "H _"], weight: float
) -> Float[np.ndarray, "H W"]:
    """The x that minimises `|x - values|^2 + weight^2 (|D_y x - down|^2 + |D_x x - right|^2)`, where `D_y x` and
    `D_x x` are the differences of each value and the next, as many as there are pairs.

    Its equation `(1 + weight^2 (D_y' D_y + D_x' D_x)) x = values + weight^2 (D_y' down + D_x' right)` is one of a
    convolution, of the picture mirrored at its borders, and so a division of its Fourier transform: exact.
    """
    height, width = values.shape
    right_side = values + weight**2 * (_transposed(down, 0) + _transposed(right, 1))
    mirrored = np.pad(right_side, ((0, height), (0, width)), mode="symmetric")
    y, x = (2 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(2 * size)) for size in (height, width))
    solved = np.fft.fft2(mirrored) / (1 + weight**2 * (y[:, None] + x))
    return np.fft.ifft2(solved).real[:height, :width]


def _transposed(differences: np.ndarray, axis: int) -> Float[np.ndarray, "H W"]:
    """The transpose of the differences of neighbours: each counts against the first and for the second."""
    return -np.diff(differences, axis=axis, prepend=0, append=0)


def _to_lab(picture: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    cv2 = opencv()
    return cv2.cvtColor((picture / 255).astype(np.float32), cv2.COLOR_RGB2Lab).astype(np.float64)


def _to_rgb(lab: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    cv2 = opencv()
    return 255 * cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_Lab2RGB).astype(np.float64)
