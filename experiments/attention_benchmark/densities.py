"""What patterns show of all pairs of tokens at the token counts of released video transformers, and the FLOPs of a
layer: counted from the patterns, nothing is run.

Run:  python -m experiments.attention_benchmark.densities      in the root of the repository
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.readme_tables import insert
from vdm_jax.attention import (
    BlockCausal,
    Full,
    LocalWindow,
    Neighbourhood,
    PerHead,
    Radial,
    SlidingTiles,
    SparseCausal,
    Spatial,
    Temporal,
)
from vdm_jax.attention.patterns import OwnPattern, attention_flops
from vdm_jax.benchmark.cases import label

PAGE = Path(__file__).parent.parent.parent / "docs" / "concepts" / "patterns.md"


@dataclasses.dataclass(frozen=True)
class Network:
    """Self-attention of a released network on a clip: tokens after patching, heads and their size."""

    name: str
    shape: tuple[int, int, int]  # frames, height, width in tokens
    heads: int
    head_dim: int


NETWORKS = (Network("Wan 2.1 14B, 81 frames of 720x1280", (21, 45, 80), 40, 128),
            Network("HunyuanVideo, 129 frames of 720x1280", (33, 45, 80), 24, 128))
PATTERNS: tuple[OwnPattern, ...] = (
    Full(), Spatial(), Temporal(), SparseCausal(own=True), BlockCausal(block=3), BlockCausal(block=3, window=6, sink=3),
    LocalWindow(frames=7, height=15, width=27), Neighbourhood(frames=7, height=15, width=27),
    Neighbourhood(frames=7, height=15, width=27, stride=(1, 3, 3)),
    SlidingTiles(tile=(3, 5, 8)), Radial(), PerHead(groups=(SparseCausal(own=True), Temporal())))


def table() -> str:
    """A line per pattern: share of all pairs, and TFLOP of one forward pass of one layer, by network."""
    lines = ["| pattern | " + " | ".join(f"{n.name}: pairs | TFLOP" for n in NETWORKS) + " |",
             "|---|" + "---:|" * 2 * len(NETWORKS)]
    for pattern in PATTERNS:
        cells = []
        for network in NETWORKS:
            sizes = {"heads": network.heads, "head_dim": network.head_dim}
            found, full = (attention_flops(p, network.shape, **sizes) for p in (pattern, Full()))
            cells.append(f"{found / full:.3g} | {found / 1e12:.3g}")
        lines.append(f"| `{label(pattern)}` | " + " | ".join(cells) + " |")
    tokens = "; ".join(f"{n.name}: {'x'.join(map(str, n.shape))} tokens, {n.heads} heads of {n.head_dim}"
                       for n in NETWORKS)
    return "\n".join([*lines, "", f"{tokens}. Scores and weighted sum, 2 FLOPs per multiply-add."])


def main(page: Path = PAGE) -> None:
    """Write the table into the page."""
    page.write_text(insert(page.read_text(), "densities", table()))
    print(page)


if __name__ == "__main__":
    main()
