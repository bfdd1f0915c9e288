"""Statistics of real clips in a file of their own: written once, then read instead of the clips, by whoever measures
against the same ones. What they were made of stands next to them, and statistics made otherwise are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.feature_scores import FEATURE_METRICS, place_of
from vdm_jax.metrics.fvd import FeatureSet
from vdm_jax.weights.safetensors import load_params, save_params

_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Reference:
    """The sets of features of a file, by what they are of."""

    path: Path | None  # None: no file is wanted
    found: Mapping[str, tuple[FeatureSet, ...]]  # empty where the file is yet to be written
    protocols: Mapping[str, str]  # that each was made for

    @classmethod
    def open(cls, path: str | None) -> Reference:
        """Read a file, if there is one. Raises `UserError` for another kind of file."""
        if path is None:
            return cls(None, {}, {})
        place = Path(path)
        if place.suffix != _SUFFIX:
            raise UserError(f"reference_statistics={path!r} is not valid; permitted: a file that ends in {_SUFFIX}")
        if not place.exists():
            return cls(place, {}, {})
        arrays, metadata = load_params(place)
        try:
            about = json.loads(metadata["reference"])
            found = {key: tuple(FeatureSet.build(arrays[key][str(i)], one) for i, one in enumerate(sets))
                     for key, sets in about["sets"].items()}
            return cls(place, found, dict(about["protocols"]))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"{place} is not a file of reference statistics ({error}); permitted: one that "
                            "'vdm-jax evaluate --reference-statistics' wrote") from error

    def covers(self, name: str, settings: Any, about: Mapping[str, Any]) -> bool:
        """Whether the file has what a metric needs of real clips.

        Raises `UserError` where it holds something that was made otherwise (protocol, detector, split, data, frames,
        stride, size, start), or no such features though it was written.
        """
        if not self.found:
            return False
        key, metric = _key(name, settings), FEATURE_METRICS[name]
        if key not in self.found:
            raise UserError(f"{self.path} has no statistics for {name}: it holds {', '.join(self.found)}; permitted: "
                            "metrics that it was written for, or another file")
        kind, protocol = metric.kind(settings), metric.protocol(settings)
        # Real clips do not depend on how much of them generated videos are given.
        wanted = {field: value for field, value in about.items() if field != "given_frames"} | {
            "resize": kind.resize, "layer": kind.layer, "detector": kind.detector().name,
            "detector_sha256": kind.detector().sha256}
        if kind.file is weights.I3D and kind.frames:
            wanted["frames"] = kind.frames
        there = {field: getattr(self.found[key][0], field) for field in wanted}
        for field, value in {"protocol": protocol.name, **wanted}.items():
            held = self.protocols[key] if field == "protocol" else there[field]
            if held != value:
                raise UserError(f"{self.path} was made with {field}={held!r}, and {name} needs {value!r}; permitted: "
                                "statistics made alike, or another file")
        return True

    def sets(self, name: str, settings: Any) -> list[FeatureSet]:
        """The real side of a metric that the file covers."""
        return list(self.found[_key(name, settings)])

    def keep(self, sides: Mapping[str, Sequence[FeatureSet]], settings: Any, about: Mapping[str, Any]) -> None:
        """Write the file if it is wanted and not there yet."""
        if self.path is None or self.found or not sides:
            return
        sets = {_key(name, settings): side for name, side in sides.items()}
        protocols = {_key(name, settings): FEATURE_METRICS[name].protocol(settings).name for name in sides}
        described = {"sets": {key: [one.about() for one in side] for key, side in sets.items()}, "protocols": protocols}
        arrays = {key: {str(i): one.arrays() for i, one in enumerate(side)} for key, side in sets.items()}
        save_params(self.path, arrays, {"reference": json.dumps(described), "about": json.dumps(dict(about))})


def _key(name: str, settings: Any) -> str:
    """Features of one kind at one place serve several metrics."""
    return f"{FEATURE_METRICS[name].kind(settings).name}:{place_of(name, settings)}"
