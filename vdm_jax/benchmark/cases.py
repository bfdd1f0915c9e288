"""What is measured: one case is one attention call, a sweep is the product of its axes."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from typing import Annotated, Any, Literal, get_args

import jax.numpy as jnp

from vdm_jax.attention.capability import CAPABILITIES, Request, resolve
from vdm_jax.attention.linear import check_whole_frames, linear_flops
from vdm_jax.attention.patterns import OwnPattern, attention_flops, by_heads, context_of
from vdm_jax.attention.products import frame_table
from vdm_jax.configuration import Count, Length, Size, config, from_data, to_data
from vdm_jax.errors import UserError

MODES = ("forward", "forward+backward")
DTYPES = ("float32", "bfloat16", "float16")
PATTERNS: dict[str, type] = {pattern.__name__: pattern for pattern in get_args(OwnPattern)}

LINEAR = "linear"  # in the place of a kernel: linear attention, which computes something else
Kernel = Literal[("auto", *sorted({kernel for kernel, _ in CAPABILITIES}), LINEAR)]
Context = Literal[tuple(sorted({context for _, context in CAPABILITIES}))]
Sizes = Annotated[tuple[Size, ...], Length()]

# FLOPs of forward and backward against those of the forward pass: the backward pass of attention that keeps no logits
# has five products of the size of the forward pass's two.
FLOP_FACTOR = {"forward": 1.0, "forward+backward": 3.5}


def parse_pattern(text: str) -> OwnPattern:
    """The pattern written as `full`, `sparse-causal` or `SparseCausal(own=True)`.

    Raises `UserError` naming the known patterns, or the option that is off.
    """
    match = re.fullmatch(r"\s*([A-Za-z_-]+)\s*(\(.*\))?\s*", text)
    names = {name.lower(): name for name in PATTERNS}
    name = names.get(re.sub("[-_]", "", match[1]).lower()) if match else None
    if name is None:
        raise UserError(f"pattern {text!r} is unknown; permitted: {', '.join(PATTERNS)}, with options as in "
                        "SparseCausal(own=True)")
    return from_data(PATTERNS[name], {"kind": name, **_options(text, match[2])}, f"pattern {text!r}")


def _options(text: str, arguments: str | None) -> dict[str, Any]:
    """Keyword arguments of a call as data."""
    try:
        return _keywords(ast.parse(f"f{arguments or '()'}", mode="eval").body)
    except (SyntaxError, ValueError):
        raise UserError(f"pattern {text!r} cannot be read; permitted: options as in SparseCausal(own=True)") from None


def _keywords(call: ast.expr) -> dict[str, Any]:
    """Keyword arguments of a call: literals, and calls that make patterns, alone or in a tuple."""
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("positional")
    return {keyword.arg or "**": _value(keyword.value) for keyword in call.keywords}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PATTERNS:
        return {"kind": node.func.id, **_keywords(node)}
    return ast.literal_eval(node)


def label(pattern: OwnPattern) -> str:
    """The pattern with the options that are not its defaults; `parse_pattern` reads it back."""
    changed = [f"{field.name}={getattr(pattern, field.name)!r}" for field in dataclasses.fields(pattern)
               if getattr(pattern, field.name) != field.default]
    return type(pattern).__name__ + (f"({', '.join(changed)})" if changed else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One attention call on random inputs `[B, T, H, W, K, D]`."""

    pattern: OwnPattern
    kernel: str = "auto"
    context: str = "none"
    frames: int = 16
    height: int = 16  # tokens
    width: int = 16  # tokens
    heads: int = 8
    head_dim: int = 64
    batch: int = 1  # clips
    dtype: str = "float32"
    mode: str = "forward"

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(T, H, W)` in tokens."""
        return self.frames, self.height, self.width

    @property
    def tokens(self) -> int:
        """Tokens of a clip."""
        return self.frames * self.height * self.width

    @property
    def array_shape(self) -> tuple[int, ...]:
        """`(B, T, H, W, K, D)`."""
        return self.batch, *self.shape, self.heads, self.head_dim

    @property
    def flops(self) -> float:
        """Mask-aware FLOPs of the call (2 per multiply-add): forward as the mask has it, backward 2.5 times as many; of
        linear attention twice as many. Raises `UserError` for a pattern that is not defined on the shape, or not for so
        many heads."""
        if self.kernel == LINEAR:
            factor = 1 if self.mode == "forward" else 3
            return factor * self.batch * linear_flops(self.pattern, self.shape, self.heads, self.head_dim)
        one = attention_flops(self.pattern, self.shape, heads=self.heads, head_dim=self.head_dim)
        return FLOP_FACTOR[self.mode] * self.batch * one

    @property
    def key(self) -> str:
        """Name of the case in a record: every field is in it."""
        size = "x".join(map(str, self.shape))
        return (f"{label(self.pattern)} {self.kernel} {self.context} {size} {self.heads}x{self.head_dim} "
                f"b{self.batch} {self.dtype} {self.mode}")

    def request(self, platform: str) -> Request:
        """The call as the capability table sees it."""
        return Request(pattern=self.pattern, shape=self.shape, batch=self.batch, heads=self.heads,
                       head_dim=self.head_dim, dtype=self.dtype, platform=platform,
                       tiled=platform == "cpu" and self.context == "none")

    def resolved(self, platform: str) -> str:
        """The kernel that computes it, which `auto` chooses. Raises `UserError` for what the capability table does not
        list, and for linear attention in a context or with a pattern that does not relate whole frames."""
        if self.kernel != LINEAR:
            return resolve(self.request(platform), self.kernel, self.context)
        if self.context != "none":
            raise UserError(f"kernel={LINEAR!r} with context={self.context!r}; permitted: context='none'",
                            "Case.context")
        check_whole_frames(self.pattern, self.shape)
        return LINEAR

    def least_bytes(self, kernel: str, platform: str) -> int:
        """Memory that the call needs at least: inputs, outputs, and the float32 logits where a kernel keeps them.

        Known before anything is compiled; the backward pass of a dense kernel holds weights and their gradient.
        """
        if len(groups := by_heads(self.pattern)) > 1:
            cases = [dataclasses.replace(self, pattern=one, heads=self.heads // len(groups)) for one in groups]
            return sum(case.least_bytes(resolve(case.request(platform), self.kernel, context_of(one, self.context)),
                                        platform) for case, one in zip(cases, groups, strict=True))
        array = jnp.dtype(self.dtype).itemsize * self.batch * self.tokens * self.heads * self.head_dim
        request, passes = self.request(platform), 1 if self.mode == "forward" else 2
        arrays = 4 * array * passes
        if kernel == "gather":
            order = self.pattern.token_order(self.shape)
            pattern, shape = (self.pattern, self.shape) if order is None else (order.pattern, order.shape)
            seen = max(int(frame_table(pattern, shape).sum(axis=1).max()), 1)
            return arrays + passes * request.logits_bytes * seen // shape[0]
        return arrays + (passes * request.logits_bytes if kernel == "xla" else 0)

    def to_data(self) -> dict[str, Any]:
        """The case as JSON data, with the pattern as its label."""
        return {**{k: v for k, v in to_data(self).items() if k != "kind"}, "pattern": label(self.pattern)}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Case:
        """The case of a record."""
        return cls(**{**data, "pattern": parse_pattern(data["pattern"])})


@config
class Sweep:
    """The product of patterns, kernels, contexts and sizes.

    Raises `UserError` for values that no case can have. Combinations that the capability table does not list are no
    error: their rows say why they were not measured.
    """

    patterns: Annotated[tuple[str, ...], Length()] = ("spatial", "temporal", "full", "causal", "sparse-causal")
    kernels: Annotated[tuple[Kernel, ...], Length()] = ("auto",)
    contexts: Annotated[tuple[Context, ...], Length()] = ("none",)
    frames: Sizes = (16,)
    sides: Sizes = (16,)  # tokens per side of a square frame
    heads: Sizes = (8,)
    head_dims: Sizes = (64,)
    batch: Count = 1
    dtypes: Annotated[tuple[Literal[DTYPES], ...], Length()] = ("float32",)
    modes: Annotated[tuple[Literal[MODES], ...], Length()] = MODES

    def cases(self) -> list[Case]:
        """All cases: the sizes inside, so that a growing series is measured in one go."""
        axes = itertools.product(self.modes, self.dtypes, self.heads, self.head_dims, self.contexts,
                                 map(parse_pattern, self.patterns), self.kernels, self.frames, self.sides)
        return [Case(pattern=pattern, kernel=kernel, context=context, frames=frames, height=side, width=side,
                     heads=heads, head_dim=dim, batch=self.batch, dtype=dtype, mode=mode)
                for mode, dtype, heads, dim, context, pattern, kernel, frames, side in axes]
