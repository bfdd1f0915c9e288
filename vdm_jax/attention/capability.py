"""The capability table: which pattern runs on which kernel in which context, and with what next to it.

What is not in the table is an error that lists what is; nothing ever falls back to something else. `kernel="auto"` is
a value the user picks: it chooses from the table by platform, shape and pattern, and logs its choice once.
"""

from __future__ import annotations

import dataclasses
import functools
import logging

from vdm_jax.attention.patterns import Full, Spatial, Temporal, by_heads, context_of, heads_of
from vdm_jax.attention.products import Pattern, Shape, frame_table, products
from vdm_jax.errors import UserError
from vdm_jax.parallel.compiling import PLATFORMS

# From where on `auto` computes in blocks. One CPU computes dense attention in tiles of whole rows of logits, until rows
# are long; without tiles blocks that stay in the cache are faster than dense from 512 rows on. Elsewhere dense is fused
# and the memory of the logits decides.
TILED_KEYS = 16_384
CHUNKED_ROWS_CPU = 512
DENSE_BYTES = 2**30

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one kernel in one context can do."""

    patterns: frozenset[str]  # names; for WithExtraKeys those of the inner pattern
    platforms: tuple[str, ...] = PLATFORMS
    bias: bool = True
    frame_masks: tuple[str, ...] = ("independent images", "any")
    frame_valid: bool = True
    extra_keys: frozenset[str] | None = None  # patterns that take outside tokens; None: all
    extra_hidden: bool = True  # takes outside tokens that some queries do not see
    offset_values: bool = False
    dtypes: tuple[str, ...] | None = None  # None: any float
    head_dim: tuple[int, int] | None = None  # (multiple of, at most)
    bounded: bool = False  # only patterns whose frames do not grow with the clip
    most_rows: int | None = None  # longest sequence, unless every token of it sees every other

    def refusal(self, request: Request) -> str | None:
        """Why this entry cannot serve the request, or None."""
        for name in ("bias", "frame_valid", "offset_values"):
            if getattr(request, name) and not getattr(self, name):
                return f"takes no {name}"
        if request.extra_keys and not self.takes_external(request.pattern):
            return f"takes no extra_keys tokens with {_name(request.pattern)}"
        if request.extra_hidden and not self.extra_hidden:
            return "takes no extra_keys tokens that some queries do not see"
        if request.frame_mask is not None and request.frame_mask not in self.frame_masks:
            return f"takes no frame_mask{''.join(f' but that of {m}' for m in self.frame_masks)}"
        if request.platform not in self.platforms:
            return f"runs on {', '.join(self.platforms)}, not on {request.platform}"
        if self.dtypes is not None and request.dtype not in self.dtypes:
            return f"takes {', '.join(self.dtypes)}, not {request.dtype}"
        if self.head_dim is not None:
            multiple, most = self.head_dim
            if request.head_dim % multiple or request.head_dim > most:
                return f"takes head_dim that is a multiple of {multiple} and <= {most}, not {request.head_dim}"
        if self.most_rows is not None and request.rows > self.most_rows and not request.unmasked:
            return f"takes sequences of {_name(request.pattern)} up to {self.most_rows} tokens, not {request.rows}"
        return None

    def takes_external(self, pattern: Pattern) -> bool:
        """Whether it takes outside tokens with a pattern, which may be an `WithExtraKeys` one."""
        return self.extra_keys is None or _name(pattern) in self.extra_keys


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of `attend`, as far as it decides about the kernel."""

    pattern: Pattern
    shape: Shape  # frames, height, width in tokens
    batch: int
    heads: int
    head_dim: int
    dtype: str
    platform: str
    bias: bool = False
    frame_mask: str | None = None  # "independent images" (`independent_frames_mask`) or "any"
    frame_valid: bool = False
    extra_keys: bool = False
    extra_tokens: int = 0  # that every query may see
    extra_hidden: bool = False  # some of them from some queries of a sequence
    offset_values: bool = False
    tiled: bool = False  # `kernels.tiles` computes dense attention

    @property
    def rows(self) -> int:
        """Length of one sequence in the pattern's layout."""
        frames, height, width = self.shape
        return {"frames": height * width, "positions": frames, "all": frames * height * width}[self.pattern.layout]

    @property
    def own(self) -> bool:
        """Whether the video's own tokens are seen."""
        return getattr(self.pattern, "mode", "append") != "replace"

    @property
    def keys(self) -> int:
        """Keys that a query of one sequence may see, the outside ones included."""
        return (self.rows if self.own else 0) + self.extra_tokens

    @property
    def unmasked(self) -> bool:
        """Whether every token of a sequence sees every other."""
        return type(self.pattern) in (Full, Spatial, Temporal) and self.frame_mask is None

    @property
    def computed(self) -> tuple[Pattern, Shape]:
        """The pattern and the shape that a kernel sees: of tokens in another order, tiles in the place of frames."""
        order = getattr(self.pattern, "inner", self.pattern).token_order(self.shape) if self.own else None
        return (self.pattern, self.shape) if order is None else (order.pattern, order.shape)

    @property
    def frames_share(self) -> float:
        """Most frames that a query sees, as a share of all."""
        pattern, shape = self.computed
        return max(int(frame_table(pattern, shape).sum(axis=1).max()), 1) / shape[0]

    @property
    def whole_frames(self) -> bool:
        """Whether a sequence is the clip and its tokens see whole frames of it alone: tiles read these in place."""
        pattern, shape = self.computed
        return (pattern.layout == "all" and not self.extra_keys and self.frame_mask != "any"
                and all(term.covers_frame(shape[1:]) for term, _ in products(pattern, shape)))

    @property
    def logits_bytes(self) -> int:
        """Size of the float32 logits of dense attention."""
        frames, height, width = self.shape
        return 4 * self.batch * self.heads * frames * height * width * self.keys


def _named(patterns: str) -> frozenset[str]:
    """A row's patterns. Every row lists its own, so that a new pattern runs nowhere until someone has said where."""
    return frozenset(patterns.split())


BLOCKS = "BlockCausal TeacherForcing"  # of causal video transformers
FIRST = "SparseCausal FirstFrames"  # which see the first frames
WINDOWS = "LocalWindow Neighbourhood SlidingTiles"  # of few frames
_ALL = _named(f"Spatial Temporal TemporalCausal Full Causal {BLOCKS} {FIRST} {WINDOWS} Radial")
CAPABILITIES: dict[tuple[str, str], Entry] = {
    ("xla", "none"): Entry(_ALL, offset_values=True),
    ("chunked", "none"): Entry(_ALL),
    ("gather", "none"): Entry(_named(f"TemporalCausal Causal BlockCausal {FIRST} {WINDOWS}"), bounded=True),
    # cuDNN itself permits head_dim up to 256 from Hopper on; 128 is what every generation takes.
    ("cudnn", "none"): Entry(_named(f"Spatial Temporal TemporalCausal Full Causal {FIRST}"), platforms=("gpu",),
                             bias=False, frame_masks=(), frame_valid=False, extra_keys=_named("Spatial Full"),
                             extra_hidden=False, dtypes=("bfloat16", "float16"), head_dim=(8, 128)),
    ("splash", "none"): Entry(_ALL - _named("Temporal TemporalCausal"), platforms=("tpu",), bias=False,
                              frame_masks=("independent images",), extra_keys=frozenset(),
                              dtypes=("bfloat16", "float32"), head_dim=(8, 256), most_rows=450_000),
}
# Spatial attention never leaves a frame, and frames are never split: it has nothing to exchange.
_EXCHANGED = _ALL - _named("Spatial")
CAPABILITIES |= {
    **{(kernel, "all_gather"): Entry(_EXCHANGED) for kernel in ("xla", "chunked")},
    **{(kernel, context): Entry(_EXCHANGED, bias=False)
       for kernel in ("xla", "chunked") for context in ("ring", "zigzag_ring", "ulysses_ring")},
    **{(kernel, "halo"): Entry(_named(f"Spatial TemporalCausal Causal BlockCausal {FIRST} {WINDOWS}"), bias=False,
                               bounded=True) for kernel in ("xla", "chunked", "gather")},
    **{(kernel, "halo"): dataclasses.replace(CAPABILITIES[kernel, "none"], patterns=_named("Spatial"))
       for kernel in ("cudnn", "splash")},
    # These two bring whole sequences to each device, so that a kernel can do what it can without a context.
    **{(kernel, "ulysses"): dataclasses.replace(entry, patterns=entry.patterns & _EXCHANGED, offset_values=False)
       for (kernel, _), entry in CAPABILITIES.items()},
    **{(kernel, "relayout"): dataclasses.replace(entry, patterns=entry.patterns & _named("Temporal TemporalCausal"),
                                                    offset_values=False)
       for (kernel, _), entry in CAPABILITIES.items() if kernel != "splash"},
}


def require(
    pattern: Pattern, kernel: str, context: str, *, bias: bool = False, extra_keys: bool = False,
    offset_values: bool = False,
) -> None:
    """Raise `UserError` unless `pattern` can run on `kernel` in `context` at all (on some platform).

    `bias` says that logits get a bias, `extra_keys` that there are outside tokens, `offset_values` that values get
    vectors of their offset. A `PerHead` pattern can run where all its groups can.
    """
    if len(patterns := by_heads(pattern)) > 1:
        for one in patterns:
            require(one, kernel, context_of(one, context), bias=bias, extra_keys=extra_keys,
                    offset_values=offset_values)
        return
    name = _name(pattern) + (" and a bias" if bias else "") + (" and extra_keys tokens" if extra_keys else "")
    name += " and relative value vectors" if offset_values else ""
    serving = {key: entry for key, entry in entries_for(pattern).items()
               if entry.bias >= bias and entry.offset_values >= offset_values
               and (not extra_keys or entry.takes_external(pattern))}
    if (kernel, context) in serving or kernel == "auto" and any(c == context for _, c in serving):
        return
    permitted = "; ".join(f"kernel={k!r} with context={c!r}" for k, c in sorted(serving))
    raise UserError(
        f"attention kernel={kernel!r}, context={context!r} is not supported with pattern {name}; "
        f"permitted: {permitted or 'nothing yet'}"
    )


def entries_for(pattern: Pattern) -> dict[tuple[str, str], Entry]:
    """The rows of the table that list the pattern, or all patterns of its groups of heads."""
    if len(patterns := by_heads(pattern)) > 1:
        rows = [(one, entries_for(one)) for one in patterns]
        return {(kernel, context): entry for (kernel, context), entry in CAPABILITIES.items()
                if all((kernel, context_of(one, context)) in row for one, row in rows)}
    name = _name(pattern).split("(")[0]
    return {key: entry for key, entry in CAPABILITIES.items()
            if name in entry.patterns and (pattern.bounded_frames() or not entry.bounded)}


def resolve(request: Request, kernel: str, context: str) -> str:
    """The kernel that serves the request, of a `PerHead` pattern those of its groups joined by plus signs. Raises
    `UserError` naming what is permitted when `kernel` cannot."""
    if len(patterns := by_heads(request.pattern)) > 1:
        heads = heads_of(request.pattern, request.heads)
        found = [resolve(dataclasses.replace(request, pattern=one, heads=heads), kernel, context_of(one, context))
                 for one in patterns]
        return "+".join(dict.fromkeys(found))
    require(request.pattern, kernel, context)
    if kernel == "auto":
        return _choose(request, context)
    refusal = CAPABILITIES[kernel, context].refusal(request)
    if refusal is None:
        return kernel
    fitting = sorted(k for (k, c), e in entries_for(request.pattern).items() if c == context and not e.refusal(request))
    raise UserError(f"attention kernel={kernel!r} with context={context!r} {refusal}; "
                    f"permitted here: {', '.join(map(repr, fitting)) or 'nothing'}")


@functools.lru_cache(maxsize=1024)
def _choose(request: Request, context: str) -> str:
    """The kernel for `auto`: cached, so that each choice is logged once."""
    fitting = {k for (k, c), e in entries_for(request.pattern).items() if c == context and not e.refusal(request)}
    kernel = next((k for k in _preference(request) if k in fitting), None)
    if kernel is None:
        names = ", ".join(sorted(k for k, c in CAPABILITIES if c == context))
        raise UserError(f"attention kernel='auto' with context={context!r} finds nothing for {request}; "
                        f"permitted: what {names} take")
    log.info("attention auto: %s for %s on %s, %s tokens, %d heads of %d, %s", kernel, request.pattern,
             request.platform, "x".join(map(str, request.shape)), request.heads, request.head_dim, request.dtype)
    return kernel


def _preference(request: Request) -> list[str]:
    """Kernels from the best down; those that do not fit are skipped by the caller."""
    share = 1.0  # of the frames, that a query sees; a short sequence is done before its frames are gathered
    if request.own and request.pattern.bounded_frames() and request.rows >= 64:
        share = request.frames_share
    sparse = share <= 0.5
    order = []
    if request.rows * request.keys >= 1024**2:
        order += {"tpu": ["splash"], "gpu": ["cudnn"]}.get(request.platform, [])
    tiled = request.tiled and request.keys * (share if sparse else 1.0) <= TILED_KEYS
    if not tiled and request.logits_bytes * (share if sparse else 1.0) > DENSE_BYTES:
        order += ["chunked"]
    order += ["gather"] if sparse and not (tiled and request.whole_frames) else []
    if not tiled and request.platform == "cpu" and min(request.rows, request.keys) >= CHUNKED_ROWS_CPU:
        order += ["chunked"]
    return [*order, "xla", "chunked"]


def _name(pattern: Pattern) -> str:
    inner = getattr(pattern, "inner", pattern)
    name = type(inner).__name__
    if getattr(inner, "window", 0) is None:
        return f"{name}(window=None)"
    return name
