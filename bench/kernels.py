"""Checks the GPU kernels against plain operations and measures them. On a machine with a CUDA build of MLX:

    PYTHONPATH=server python bench/kernels.py [SECTION ...]

Each section stands for itself: one that fails is told of, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx_lm.models import qwen3
from mlx_lm.models.cache import make_prompt_cache

from mlxrpc_server.engine import thin
from mlxrpc_server.engine.kernels import draw as fused
from mlxrpc_server.engine.kernels import product as products
from mlxrpc_server.engine.kernels.cuda import CudaStore
from mlxrpc_server.engine.kernels.stores import agrees
from mlxrpc_server.engine.kernels.turn import Token, Turn, frequencies, turned
from mlxrpc_server.engine.paged import Form, Goal, Paged, Plan, planned
from mlxrpc_server.engine.pages import SIZE, part_tokens
from mlxrpc_server.engine.room import Room
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import RowId, Sampling

VOCABULARY = 151_936
ROWS = (1, 8, 32, 64, 128)
SLAB = 70


def tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def microseconds(run: Callable[[], Any], times: int = 50) -> float:
    last = run()
    for _ in range(3):
        mx.eval(last)
        last = run()
    begun = time.perf_counter()
    for _ in range(times):
        last = run()
        mx.async_eval(last)  # type: ignore[no-untyped-call]
    mx.eval(last)
    return round((time.perf_counter() - begun) / times * 1e6, 1)


# Attention


FORMS = [
    Form(2, 8, 128, 2, mx.bfloat16),
    Form(2, 2, 64, 4, mx.bfloat16),
    Form(2, 4, 80, 1, mx.float16),
    Form(2, 2, 96, 3, mx.bfloat16),
    Form(2, 4, 128, 7, mx.bfloat16),
    Form(2, 1, 256, 8, mx.float32),
    Form(2, 2, 64, 16, mx.float32),
]


def attention_check() -> None:
    for form in FORMS:
        for turn in (None, *turns(form)):
            begun = time.perf_counter()
            right = agrees(CudaStore, form, turn)
            tell(form=str(form), turn=turn and turn.kind, agrees=right, seconds=round(time.perf_counter() - begun, 1))
    for length in (160, 4096, 40_000, 120_000):
        tell(length=length, **Attention(4, length).differences())


def turns(form: Form) -> list[Turn]:
    size = form.head_size
    query, key = ((1 + mx.random.uniform(shape=(size,))).astype(form.dtype) for _ in range(2))
    return [
        Turn(frequencies(size, 1e6), size, traditional=False, query_norm=query, key_norm=key, eps=1e-6),
        Turn(frequencies(size // 2, 1e4), size // 2, traditional=True),
    ]


def attention_speed() -> None:
    for length in (160, 2048):
        for rows in ROWS:
            Attention(rows, length).measure()
    Attention(1, 32_000).measure()
    Attention(8, 32_000).measure()


class Attention:
    """One layer's, over rows of about this length, in pages that lie anywhere."""

    FORM = Form(1, 8, 128, 2, mx.bfloat16)
    SCALE = 128**-0.5

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.lengths = [length - index * 7 % 60 for index in range(rows)]
        self.keys, self.values = (mx.random.normal((rows, 8, length, 128)).astype(mx.bfloat16) for _ in range(2))
        self.queries = mx.random.normal((rows, 16, 1, 128)).astype(mx.bfloat16)
        self.mask = (mx.arange(length)[None] < mx.array(self.lengths)[:, None])[:, None, None]
        self.store = CudaStore(self.FORM, SLAB)
        numbers = list(range(rows * (-(-length // SIZE) + 1)))
        self.store.hold(-(-len(numbers) // SLAB))
        self.pages = [numbers[row::rows][::-1] for row in range(rows)]
        self.store.write(
            0, self.keys, self.values, Goal(self.store.table(self.pages, len(self.pages[0])), self.lengths)
        )
        mx.eval(self.queries, self.mask)

    def differences(self) -> dict[str, float]:
        """How far queries that the kernel turns, and keys, are from those that MLX's own operations turn."""
        plan, token = self.plan(part_tokens(self.lengths, 8)), self.token
        attended, kept = [], []
        for before, turn in ((token, self.turn), (turned(token, plan.lengths, self.turn), None)):
            attended.append(self.store.attend(0, before, plan, self.SCALE, 0, turn))
            keys, _ = self.store.read(0, self.pages)
            kept.append(mx.stack([keys[row, :, length] for row, length in enumerate(self.lengths)]))
            mx.eval(attended, kept)  # the next one writes to the same places
        answers, new = (mx.abs(one - other).max() for one, other in (attended, kept))
        others = (kept[0] != kept[1]).astype(mx.float32).mean()
        return {"attended": float(answers), "keys": float(new), "share_of_keys": round(float(others), 4)}

    def measure(self) -> None:
        usual = part_tokens(self.lengths, 8)
        parts = [part for part in (64, 128, 256, 512, 1024, 2048) if 1 / 2 <= self.length / part <= 250]
        tell(
            rows=self.rows,
            length=self.length,
            part=usual,
            ours={part: self.paged(part) for part in sorted({usual, *parts})},
            fused=self.fused(None),
            masked=self.fused(self.mask),
            on_device=self.on_device(usual),
            bound=round(self.rows * self.length * 8 * 128 * 4 / 4.4e6, 1),
        )

    @functools.cached_property
    def token(self) -> Token:
        token = (self.queries, mx.contiguous(self.keys[:, :, :1]), mx.contiguous(self.values[:, :, :1]))
        mx.eval(token)
        return token

    @functools.cached_property
    def turn(self) -> Turn:
        return turns(self.FORM)[0]

    def plan(self, part: int) -> Plan:
        plan = planned(self.store, self.pages, self.lengths, steps=8, part=part)
        mx.eval(plan.lengths, plan.work, plan.table)
        return plan

    def paged(self, part: int) -> float:
        plan = self.plan(part)
        return microseconds(lambda: self.store.attend(0, self.token, plan, self.SCALE, 0))

    def on_device(self, part: int, times: int = 40) -> dict[str, float]:
        """Without a turn, with the kernel's own, and with one by MLX's operations. The tickets put them in a row."""
        plan = self.plan(part)

        def run(turn: Turn | None, apart: Turn | None) -> mx.array:
            last = self.queries
            for _ in range(times):
                token = turned(self.token, plan.lengths, apart)
                last = self.store.attend(0, token, plan, self.SCALE, 0, turn)
            return last

        forms = {"still": (None, None), "turned": (self.turn, None), "apart": (None, self.turn)}
        return {name: round(on_device(functools.partial(run, *form)) / times, 2) for name, form in forms.items()}

    def fused(self, mask: mx.array | None) -> float:
        attend = mx.fast.scaled_dot_product_attention
        return microseconds(lambda: attend(self.queries, self.keys, self.values, scale=self.SCALE, mask=mask))


# The draw


def sampling(temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 0) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)


def draw_check() -> None:
    kinds = [
        (0.0, 1.0, 0, 0.0),
        (0.7, 0.9, 0, 0.0),
        (1.0, 1.0, 0, 0.0),
        (1.0, 0.5, 40, 0.05),
        (0.3, 1.0, 1, 0.0),
        (1.0, 1.0, 50, 0.0),
        (2.0, 0.99, 5000, 0.0),
        (1.0, 1.0, 0, 0.1),
        (1.5, 0.0, 0, 0.0),
    ]
    for width, dtype, spread in [
        (VOCABULARY, mx.bfloat16, 1.0),
        (VOCABULARY, mx.float32, 3.0),
        (32_001, mx.float16, 8.0),
        (500, mx.float32, 0.1),
    ]:
        rows = [sampling(*kinds[index % len(kinds)], seed=index * 977) for index in range(90)]
        same = apart = total = 0
        for turn in range(4):
            logits = (spread * mx.random.normal((90, width), key=mx.random.key(turn))).astype(dtype)
            positions = mx.arange(90, dtype=mx.uint32) + turn
            tokens = fused.draw(logits, positions, fused.columns(rows, 1e-6))
            scores = Draws(rows).scores(logits, positions).astype(mx.float32)
            mine = mx.take_along_axis(scores, tokens[:, None].astype(mx.int32), axis=-1)[:, 0]
            best = scores.max(axis=-1)
            same += int((tokens == mx.argmax(scores, axis=-1)).sum())
            wrong = mine < best - 1e-4 * mx.maximum(1.0, mx.abs(best))
            apart += int(wrong.sum())
            total += 90
            for row in [row for row in range(90) if wrong[row]][:4]:
                at, likely = int(tokens[row]), int(mx.argmax(scores[row]))
                tell(
                    kind=kinds[row % 9],
                    tokens=(at, likely),
                    logits=(float(logits[row, at]), float(logits[row, likely])),
                )
        tell(width=width, dtype=str(dtype), same=same, of=total, not_near_ties=apart)


KINDS = {
    "greedy": sampling(0.0),
    "temperature": sampling(0.7),
    "top_p": sampling(0.7, top_p=0.9),
    "top_k": sampling(0.7, top_k=40),
    "all": sampling(0.7, top_p=0.9, top_k=40, min_p=0.05),
}


def draw_speed() -> None:
    for rows in (1, 8, 64, 128):
        for name, spread in (("flat", 1.0), ("peaked", 3.0)):
            logits = (spread * mx.random.normal((rows, VOCABULARY))).astype(mx.bfloat16)
            mx.eval(logits)
            tell(rows=rows, logits=name, **draws_of(logits))


def draws_of(logits: mx.array) -> dict[str, float]:
    rows = logits.shape[0]
    positions = mx.arange(rows, dtype=mx.uint32)
    plain = Draws([KINDS["top_p"]] * rows)
    took = {
        "argmax": microseconds(lambda: mx.argmax(logits, axis=-1)),
        "plain top_p": microseconds(lambda: mx.argmax(plain.scores(logits, positions), axis=-1), times=5),
    }
    for kind, one in KINDS.items():
        columns = fused.columns([one] * rows, 1e-6)
        took[kind] = microseconds(functools.partial(fused.draw, logits, positions, columns))
    return took


# Products


SHAPES = {
    "qkv": ((2048, 1024, 1024), 1024),
    "o": ((1024,), 2048),
    "gate_up": ((3072, 3072), 1024),
    "down": ((1024,), 3072),
}
"""Of Qwen3-0.6B: widths and depth."""


def layers_of(widths: tuple[int, ...], depth: int, dtype: mx.Dtype, *, biased: bool = False) -> list[products.Layer]:
    def some(*shape: int) -> mx.array:
        numbers: mx.array = mx.random.normal(shape) * depth**-0.5
        return numbers.astype(dtype)

    layers = [products.Layer(some(width, depth), some(width) if biased else None) for width in widths]
    mx.eval([array for layer in layers for array in (layer.weight, layer.bias) if array is not None])
    return layers


def product_check() -> None:
    cases = [(*SHAPES[name], False) for name in SHAPES] + [((136, 8), 72, True), ((1000, 248), 520, True)]
    for (widths, depth, biased), dtype in itertools.product(cases, (mx.bfloat16, mx.float16)):
        layers = layers_of(widths, depth, dtype, biased=biased)
        begun = time.perf_counter()
        apart = [differences(rows, layers) for rows in (1, 2, 7, 8, 16, 33, 64, 100, 128)]
        worst = {name: max(one[name] for one in apart) for name in apart[0]}
        took = round(time.perf_counter() - begun, 1)
        tell(widths=widths, depth=depth, dtype=str(dtype), biased=biased, worst=worst, seconds=took)


def differences(rows: int, layers: list[products.Layer]) -> dict[str, float]:
    """Of each kind of product from plain operations in float32."""
    first, dtype = layers[0], layers[0].weight.dtype
    x = (20 * mx.random.normal((rows, 1, first.depth))).astype(dtype)
    to = (10 * mx.random.normal((rows, 1, first.width))).astype(dtype)
    norm = norm_of(first)
    normed = mx.fast.rms_norm(x.astype(mx.float32), norm.weight.astype(mx.float32), norm.eps)
    twin = products.Layer(first.weight[::-1], first.bias)
    gates = [exact(one, layer) for one in (x / 20, normed) for layer in (first, twin)]
    pairs = {
        "plain": (products.products(x, layers), [exact(x, layer) for layer in layers]),
        "normed": (products.products(x, layers, norm), [exact(normed, layer) for layer in layers]),
        "added": ([products.added(x, first, to)], [to + exact(x, first)]),
        "gated": ([products.gated(x / 20, first, twin)], [gates[0] * mx.sigmoid(gates[0]) * gates[1]]),
        "normed, gated": ([products.gated(x, first, twin, norm)], [gates[2] * mx.sigmoid(gates[2]) * gates[3]]),
    }
    return {name: max(map(difference, *pair)) for name, pair in pairs.items()}


def exact(x: mx.array, layer: products.Layer) -> mx.array:
    product = x.astype(mx.float32) @ layer.weight.astype(mx.float32).T
    return product if layer.bias is None else product + layer.bias


def difference(actual: mx.array, expected: mx.array) -> float:
    """As a part of the largest number."""
    return float(mx.abs(actual - expected).max() / mx.abs(expected).max())


def norm_of(layer: products.Layer) -> products.Norm:
    weight = mx.random.uniform(0.5, 3.0, (layer.depth,)).astype(layer.weight.dtype)
    mx.eval(weight)
    return products.Norm(weight, 1e-6)


def product_speed() -> None:
    """Microseconds of a layer's products on the device, over the weights of many layers, which its caches do not hold."""
    for name, (widths, depth) in SHAPES.items():
        many = [layers_of(widths, depth, mx.bfloat16) for _ in range(40)]
        for rows in (1, 8, 16, 64, 128):
            x = mx.random.normal((rows, 1, depth)).astype(mx.bfloat16)
            tiles = next(tiles for most, tiles in products.TILES.items() if rows <= most)
            forms = [products.Form(tiles, tall, products.SHARED[9, 0] << 10) for tall in products.TALL]
            tell(
                product=name,
                rows=rows,
                mlx=device_time(x, many, lambda x, layers: [x @ layer.weight.T for layer in layers]),
                ours=device_time(x, many, products.products),
                around={name: device_time(x, many, compute) for name, compute in around(x, many[0]).items()},
                tall={one.tall: device_time(x, many, functools.partial(products.in_form, one)) for one in forms},
            )


def around(x: mx.array, layers: list[products.Layer]) -> dict[str, Compute]:
    """What else these layers' launch can do."""
    norm = norm_of(layers[0])
    to = mx.random.normal((x.shape[0], 1, layers[0].width)).astype(mx.bfloat16)
    kinds: dict[str, Compute] = {"normed": lambda x, layers: products.products(x, layers, norm)}
    if len(layers) == 1:
        kinds["added"] = lambda x, layers: [products.added(x, layers[0], to)]
    if len(layers) == 2:
        kinds["gated"] = lambda x, layers: [products.gated(x, layers[0], layers[1])]
        kinds["normed, gated"] = lambda x, layers: [products.gated(x, layers[0], layers[1], norm)]
    return kinds


Compute = Callable[[mx.array, Any], list[mx.array]]


def device_time(x: mx.array, many: list[Any], compute: Compute, times: int = 4) -> float:
    """One behind the other: each takes something from the one before. What that costs by itself is taken off."""

    def run(compute: Compute) -> mx.array:
        last = x
        for layers in many * times:
            last = x + 0 * compute(last, layers)[-1][..., :1]
        return last

    both = on_device(lambda: run(compute)) - on_device(lambda: run(lambda x, _: [x]))
    return round(both / len(many) / times, 2)


def on_device(run: Callable[[], mx.array], times: int = 5) -> float:
    """Microseconds, the host's part apart: all is dispatched while the device has something else to do."""
    mx.eval(run())
    took = []
    for _ in range(times):
        before, after = busy(), run()
        mx.async_eval(before)  # type: ignore[no-untyped-call]
        mx.async_eval(after)  # type: ignore[no-untyped-call]
        mx.eval(before)
        begun = time.perf_counter()
        mx.eval(after)
        took.append(time.perf_counter() - begun)
    return min(took) * 1e6


@functools.cache
def square() -> mx.array:
    return mx.random.normal((8192, 8192)).astype(mx.bfloat16)


def busy() -> mx.array:
    """For some thirty milliseconds."""
    last = square()
    for _ in range(20):
        last = last @ square()
    return last


# The model


def qwen(layers: int = 28) -> Any:
    arguments = qwen3.ModelArgs(
        model_type="qwen3",
        hidden_size=1024,
        num_hidden_layers=layers,
        intermediate_size=3072,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        vocab_size=VOCABULARY,
        max_position_embeddings=40_960,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    model = qwen3.Model(arguments)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


FORM = Form(28, 8, 128, 2, mx.bfloat16)


def prefilled(model: Any, rows: int, length: int) -> list[Any]:
    cache = make_prompt_cache(model)
    model.model(mx.random.randint(0, 150_000, (rows, length)), cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache


class Static:
    """Rows of one length in mlx-lm's own cache, without a mask: what everything is held against."""

    def __init__(self, model: Any, rows: int, length: int) -> None:
        self.rows = rows
        self._model = model
        self._cache = prefilled(model, rows, length)

    def logits(self, tokens: mx.array) -> mx.array:
        logits: mx.array = self._model(tokens[:, None], cache=self._cache)[:, -1]
        return logits


class Ragged:
    """Rows of some lengths up to this one in pages."""

    def __init__(self, model: Any, rows: int, length: int) -> None:
        self.rows = rows
        self.store = CudaStore(FORM, SLAB)
        self.kv = Paged(model, FORM, self.store, Room(256, 60 << 30))
        for first in range(0, rows, 8):
            some = range(first, min(first + 8, rows))
            self.kv.join(
                [RowId(row) for row in some], prefilled(model, len(some), length), [length - row % 32 for row in some]
            )

    def logits(self, tokens: mx.array) -> mx.array:
        self.kv.arrange()
        return self.kv.decode(tokens)


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


def tokens_per_second(rows: Static | Ragged, draw: Callable[[mx.array], mx.array], warm: int = 30) -> float:
    """Each step is dispatched before the one before it is read."""
    tokens = mx.zeros((rows.rows,), mx.uint32)
    for _ in range(warm):
        tokens = draw(rows.logits(tokens))
        mx.eval(tokens)
    times, begun = 64, time.perf_counter()
    for _ in range(times):
        following = draw(rows.logits(tokens))
        mx.async_eval(following)  # type: ignore[no-untyped-call]
        tokens.tolist()
        tokens = following
    mx.eval(tokens)
    return round(times * rows.rows / (time.perf_counter() - begun), 1)


def model_speed() -> None:
    model = qwen()
    for length in (128, 2048):
        for rows in ROWS:
            static = tokens_per_second(Static(model, rows, length), greedy)
            mx.clear_cache()
            ragged = Ragged(model, rows, length)
            ours = tokens_per_second(ragged, greedy, warm=60)
            columns = fused.columns([sampling(0.7, top_p=0.9, seed=row) for row in range(rows)], 1e-6)
            draw = functools.partial(_drawn, mx.arange(rows, dtype=mx.uint32), columns)
            sampled = tokens_per_second(ragged, draw, warm=60)
            tell(
                length=length,
                rows=rows,
                static=static,
                greedy=ours,
                sampled=sampled,
                share=round(ours / static, 3),
                gigabytes=round(ragged.kv.nbytes / 1e9, 2),
            )
            del ragged
            mx.clear_cache()


def _drawn(positions: mx.array, columns: fused.Columns, logits: mx.array) -> mx.array:
    return fused.draw(logits, positions, columns)


def host() -> None:
    """Where a step's time goes, and what compiling all of it changes."""
    model = qwen()
    for rows in (1, 8, 64):
        ragged = Ragged(model, rows, 128)
        ragged.store.compiles = False
        eager = tokens_per_second(ragged, greedy, warm=40)
        tell(rows=rows, compiled=False, tokens_per_second=eager, **stages(ragged))
        ragged.store.compiles = True
        compiled = tokens_per_second(ragged, greedy, warm=80)
        tell(rows=rows, compiled=True, tokens_per_second=compiled, **stages(ragged))


def stages(rows: Ragged) -> dict[str, int]:
    """Microseconds of a step, its parts one after another."""
    tokens = mx.zeros((rows.rows,), mx.uint32)
    took = [0.0, 0.0, 0.0]
    for _ in range(20):
        begun = time.perf_counter()
        following = greedy(rows.logits(tokens))
        built = time.perf_counter()
        mx.async_eval(following)  # type: ignore[no-untyped-call]
        dispatched = time.perf_counter()
        mx.eval(following)
        parts = built - begun, dispatched - built, time.perf_counter() - begun
        took = [sum(pair) for pair in zip(took, parts, strict=True)]
        tokens = following
    return dict(zip(("built", "dispatched", "whole"), (round(one / 20 * 1e6) for one in took), strict=True))


def thin_speed() -> None:
    """Steps with MLX's products and with ours."""
    models = {"mlx": qwen(), "ours": qwen()}
    begun = time.perf_counter()
    tell(layers=thin.install(models["ours"]), seconds=round(time.perf_counter() - begun, 1))
    for rows in ROWS:
        for name, model in models.items():
            ragged = Ragged(model, rows, 128)
            speed = tokens_per_second(ragged, greedy, warm=40)
            tokens = mx.zeros((rows,), mx.uint32)
            device = on_device(lambda ragged=ragged, tokens=tokens: greedy(ragged.logits(tokens)))  # type: ignore[misc]
            tell(rows=rows, products=name, tokens_per_second=speed, step_on_device=round(device), **stages(ragged))
            del ragged
            mx.clear_cache()


def join() -> None:
    """What steps over long rows take while another joins, and one leaves."""
    model = qwen()
    ragged = Ragged(model, 31, 4096)
    kv = ragged.kv
    short, long = prefilled(model, 1, 5), prefilled(model, 1, 4096)
    events: dict[int, Callable[[], None]] = {
        12: lambda: kv.join([RowId(100)], short, [4]),
        20: lambda: kv.leave(RowId(100)),
        28: lambda: kv.join([RowId(101)], long, [4096]),
        36: lambda: kv.leave(RowId(3)),
    }
    tokens = mx.zeros((31,), mx.uint32)
    took: list[list[float]] = []
    for turn in range(44):
        times = [time.perf_counter()]
        events.get(turn, lambda: None)()
        times.append(time.perf_counter())
        rows = len(kv.arrange())
        times.append(time.perf_counter())
        following = greedy(kv.decode(tokens if tokens.size == rows else mx.zeros((rows,), mx.uint32)))
        times.append(time.perf_counter())
        mx.async_eval(following)  # type: ignore[no-untyped-call]
        times.append(time.perf_counter())
        tokens.tolist()
        tokens = following
        times.append(time.perf_counter())
        parts = [after - before for before, after in itertools.pairwise(times)]
        took.append([round(1e3 * one, 2) for one in (sum(parts), *parts)])
    tell(order="whole, event, arrange, build, dispatch, read", usual_ms=sorted(took[4:12])[4])
    for name, turn in (("join of 4", 12), ("leave", 20), ("join of 4096", 28), ("leave of 4096", 36)):
        tell(event=name, steps=took[turn : turn + 3])
    tell(gigabytes=round(kv.nbytes / 1e9, 1))


SECTIONS = {
    "attention_check": attention_check,
    "draw_check": draw_check,
    "product_check": product_check,
    "attention_speed": attention_speed,
    "draw_speed": draw_speed,
    "product_speed": product_speed,
    "model_speed": model_speed,
    "thin_speed": thin_speed,
    "host": host,
    "join": join,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    chosen = parser.parse_args().sections or list(SECTIONS)
    tell(mlx=version("mlx"), device=str(mx.default_device()), **mx.device_info())
    for name in chosen:
        begun = time.perf_counter()
        print(f"## {name}", flush=True)
        try:
            SECTIONS[name]()
        except Exception:  # noqa: BLE001  the other sections are to be measured all the same
            traceback.print_exc()
        print(f"## {name}: {time.perf_counter() - begun:.0f} s", flush=True)
        mx.clear_cache()


if __name__ == "__main__":
    main()
