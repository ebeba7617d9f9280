"""Gives a loaded model's linear layers products of our own where the input has few rows, as it has in decoding.

Which layers are asked with one input, one behind the other, is seen from a pass of the model: those answer in one
launch. Nothing is kept unless every layer gives what MLX's product gives. Knows mlx-lm's models only as modules.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear

from mlxrpc_server.engine.kernels.product import MOST_LAYERS, MOST_ROWS, Layer, products

log = logging.getLogger(__name__)

PROBES = (13, 50, 100)
"""Rows, for every form of the kernel."""

WIDEST = 1 << 16
"""A wider layer turns into logits: there is one of it in a step, and MLX's product is as good."""

TOLERANCE = {mx.float16: 4e-3, mx.bfloat16: 2e-2}
"""How far a product may differ, as a part of the largest number in it."""

Products = Callable[[mx.array, Sequence[Layer]], list[mx.array]]
Answer = Callable[["Thin", mx.array], mx.array]


class Thin(Linear):
    """A layer of the model, with its own arrays under its own names. Whom it asks where rows are few can be changed."""

    def __init__(self, linear: Linear, answer: Answer) -> None:
        Module.__init__(self)  # type: ignore[no-untyped-call]
        dict.update(self, linear)
        self.answer = answer

    @property
    def layer(self) -> Layer:
        return layer_of(self)

    def usual(self, x: mx.array) -> mx.array:
        product: mx.array = super().__call__(x)
        return product

    def __call__(self, x: mx.array) -> mx.array:
        weight = self["weight"]
        few = 0 < x.size <= MOST_ROWS * x.shape[-1]
        if few and x.dtype == weight.dtype and x.shape[-1] == weight.shape[1]:
            return self.answer(self, x)
        return self.usual(x)


class Together:
    """Layers that are asked with the same array, one behind the other: all are computed when the first is asked."""

    def __init__(self, layers: Sequence[Thin], compute: Products) -> None:
        self._layers = layers
        self._compute = compute
        self._apart = False
        self._input: mx.array | None = None
        self._left: dict[int, mx.array] = {}

    def __call__(self, layer: Thin, x: mx.array) -> mx.array:
        if x is not self._input:
            self._ask(x)
        answer = self._left.pop(id(layer), None)
        if not self._left:
            self._input = None
        return self._compute(x, [layer.layer])[0] if answer is None else answer

    def _ask(self, x: mx.array) -> None:
        """Where some were not asked the last time, the model does not always ask so: from then on each is for itself."""
        self._apart = self._apart or bool(self._left)
        self._left.clear()
        if not self._apart:
            answers = self._compute(x, [layer.layer for layer in self._layers])
            self._input, self._left = x, dict(zip(map(id, self._layers), answers, strict=True))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model keeps one of its linear layers."""

    parent: Any
    name: str
    linear: Linear


def install(model: Any, compute: Products = products) -> int:
    """How many layers have it now: none where one of them differs. Their parameters stay what and where they are."""
    places = list(_places(model))
    seen: list[tuple[Thin, mx.array]] = []
    swapped = _swapped(places, seen)
    used: set[int] = set()
    try:
        _run(model, PROBES[0])
        for group in groups(seen):
            _join(group, Together(group, compute))
            used.update(map(id, group))
        agreed = _agree(model, [layer for layer in swapped if id(layer) in used])
    except RuntimeError:
        # What MLX raises where a kernel does not compile or does not launch.
        log.warning("a kernel does not run on this device: MLX's products take its place", exc_info=True)
        agreed = False
    for place in places:
        if not agreed or id(place.parent[place.name]) not in used:
            place.parent[place.name] = place.linear
    return len(used) if agreed else 0


def _places(model: Any) -> Iterator[Place]:
    for module in model.modules():
        for name, child in module.items():
            if type(child) is Linear and child.weight.shape[0] <= WIDEST and layer_of(child).suits:
                yield Place(module, name, child)


def layer_of(linear: Linear) -> Layer:
    return Layer(linear["weight"], linear.get("bias"))


def _swapped(places: Sequence[Place], seen: list[tuple[Thin, mx.array]]) -> list[Thin]:
    """In these layers' places, others that note what they are asked with. A layer may have two places."""

    def note(layer: Thin, x: mx.array) -> mx.array:
        seen.append((layer, x))
        return layer.usual(x)

    made = {id(place.linear): Thin(place.linear, note) for place in places}
    for place in places:
        place.parent[place.name] = made[id(place.linear)]
    return list(made.values())


def _run(model: Any, rows: int) -> mx.array:
    """With ids that every vocabulary has."""
    logits: mx.array = model(mx.array([[7 * place % 64 for place in range(rows)]]))
    return logits


def groups(seen: Sequence[tuple[Thin, mx.array]]) -> Iterator[list[Thin]]:
    """Of layers that were asked with one array, each once; a layer that was asked more often is one for itself."""
    times = Counter(id(layer) for layer, _ in seen)
    yield from ([layer] for layer in {id(layer): layer for layer, _ in seen if times[id(layer)] > 1}.values())
    once = (one for one in seen if times[id(one[0])] == 1)
    for _, asked in itertools.groupby(once, lambda one: (id(one[1]), "bias" in one[0])):
        layers = [layer for layer, _ in asked]
        for first in range(0, len(layers), MOST_LAYERS):
            yield layers[first : first + MOST_LAYERS]


def _join(layers: Sequence[Thin], together: Together) -> None:
    for layer in layers:
        layer.answer = together


def _agree(model: Any, layers: Sequence[Thin]) -> bool:
    """Whether each gives MLX's product of what the model asks it with, in passes over few rows and over many."""
    apart: list[mx.array] = []
    answers = [layer.answer for layer in layers]
    for layer in layers:
        layer.answer = _judged(layer.answer, apart)
    for rows in PROBES:
        _run(model, rows)
        mx.eval(apart)
    for layer, answer in zip(layers, answers, strict=True):
        layer.answer = answer
    # Not "above it": a difference that is no number is neither above nor within.
    agreed = bool((mx.stack(apart) <= 1.0).all()) if apart else True
    if not agreed:
        log.warning("a kernel computes something else than MLX's products, which take its place")
    return agreed


def _judged(answer: Answer, apart: list[mx.array]) -> Answer:
    """Gives MLX's product, and notes how far ours is from it, as a part of what it may be."""

    def judged(layer: Thin, x: mx.array) -> mx.array:
        expected, actual = layer.usual(x), answer(layer, x)
        size = mx.maximum(mx.abs(expected).max(), 1e-6).astype(mx.float32)
        apart.append(mx.abs((actual - expected).astype(mx.float32)).max() / size / TOLERANCE[x.dtype])
        return expected

    return judged
