"""What a stage of a cascade starts from, apart from noise."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from jaxtyping import Array, Float


class VideoSource:
    """A video that a stage starts from: that of the stage before, or what training makes of a clip in its place."""

    shown: ClassVar[str]  # its name in sample grids
    condition: ClassVar[str]  # name of the condition as which it enters
    # It is single frames of the stage's own video: the user may give them in its place, and latents of several frames
    # do not keep them
    single_frames: ClassVar[bool] = False
    augmentation: Any = None  # how it is corrupted

    def size(self, video: Any) -> tuple[int, int, int]:
        """Its frames, height and width, for a stage that makes `video` (`VideoSpec`)."""
        raise NotImplementedError

    def degrade(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B T2 H2 W2 3"]:
        """What the stage before would have made of the stage's own video `x`."""
        raise NotImplementedError

    def stride(self, frames: int) -> int:
        """Frames of a stage of so many for one of this."""
        raise NotImplementedError

    def check(self, stage: Any) -> None:
        """Raise `UserError` for a stage that cannot start from this."""

    def has_parts(self, frames: int) -> bool:
        """Whether parts of a stage's video of so many frames start from parts of this."""
        return True

    def part(self, frames: int) -> Self:
        """That of a part of so many frames."""
        return self

    def masked_video(self, low: Float[Array, "B T H W 3"] | None, masked_video: Any) -> Any:
        """Conditioning frames (`MaskedVideo`) of the stage's videos, given its source and what the user gave."""
        return masked_video

    def given(self, masked_video: Any, stage: Any) -> tuple[Any, Any]:
        """The source, and the conditioning frames that are left, of frames that the user gave in its place."""
        return None, masked_video
