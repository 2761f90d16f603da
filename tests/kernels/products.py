"""What the tests of products and convolutions are made of: random weights, epilogues, and any tile on demand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels.check import TARGETS_HERE

from qrt.core.target import Target
from qrt.jit.lanes import LANES
from qrt.ops.gemm import Codes, CodesAdd, DynamicFloat, Epilogue, Float, Int32, Weights
from qrt.ops.gemm.table import TILES, Tile, tiles_for
from qrt.ops.op import Array

RNG = np.random.default_rng(0)
# Kernels' float sums run in another order than NumPy's.
NEAR: dict[str, Any] = {"exact": False, "rtol": 1e-4, "atol": 1e-4}

# Those of the targets that have vector kernels of their own.
VECTOR_TARGETS = [target for target in TARGETS_HERE if target.isa in TILES]
TILES_HERE: list[tuple[Target, Tile]] = [(target, tile) for target in VECTOR_TARGETS for tile in TILES[target.isa]]
FLOAT_TILES_HERE = [(target, tile) for target in VECTOR_TARGETS for tile in tiles_for(target.isa, "f32")]


def _by_tile(tiles: list[tuple[Target, Tile]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("target", "tile"), tiles, ids=lambda v: v.isa if isinstance(v, Target) else v.name)


BY_TILE, BY_FLOAT_TILE = _by_tile(TILES_HERE), _by_tile(FLOAT_TILES_HERE)


def edges(target: Target, tile: Tile) -> list[tuple[int, int, int]]:
    """m, n and k of products that fill a tile, or do not, or go beyond it."""
    rows, columns = tile.rows, tile.vectors * LANES[target.isa]
    return [
        (1, 1, 1),
        (rows, columns, 8),
        (rows + 1, columns + 1, 7),
        (2 * rows - 1, columns - 1, 6),
        (3 * rows, 2 * columns + 3, 5),
    ]


def use(patch: pytest.MonkeyPatch, tile: Tile) -> None:
    """From here on every product takes `tile`."""
    patch.setattr("qrt.ops.gemm.product.choose_tile", lambda *_: tile)


def codes(*shape: int) -> Array:
    """uint8 of any value, the extremes often."""
    x = RNG.integers(0, 256, shape).astype(np.uint8)
    return np.where(RNG.random(shape) < 0.2, np.uint8(255), x)


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def weights(groups: int, taps: int, k: int, n: int, asymmetric: bool = False, bias: bool = True) -> Weights:
    """int8 weights over their whole range."""
    w = RNG.integers(-128, 128, (groups, taps, k, n)).astype(np.int8)
    w[..., ::3] = np.where(RNG.random(w[..., ::3].shape) < 0.5, np.int8(-128), np.int8(127))
    points = RNG.integers(-128, 128, groups * n).astype(np.int32) if asymmetric else None
    return Weights(w, points, RNG.integers(-5000, 5000, groups * n).astype(np.int32) if bias else None)


def float_weights(groups: int, taps: int, k: int, n: int, bias: bool = True) -> Weights:
    return Weights(floats(groups, taps, k, n), None, floats(groups * n) if bias else None)


def to_codes(columns: int, reach: int, low: int = 3, high: int = 250) -> Codes:
    """An epilogue whose multipliers bring sums of `reach` products over most of the codes."""
    return Codes((RNG.random(columns) * 2e-2 / np.sqrt(reach) + 1e-5).astype(np.float32), 120, low, high)


def added(columns: int, reach: int, signed: bool = False, residual_first: bool = False) -> CodesAdd:
    """Codes plus a residual, with ratios that make ties."""
    return CodesAdd(to_codes(columns, reach, 0, 255), 0.5, 0.25, 100, 131, 5, 250, signed, residual_first)


def dynamic(columns: int) -> DynamicFloat:
    return DynamicFloat(RNG.random(columns).astype(np.float32))


def extra(epilogue: Epilogue, *y: int) -> list[Array]:
    """What the epilogue reads beside the operands, for a result of shape y."""
    match epilogue.name:
        case "u8add" | "u8radd":
            return [codes(*y)]
        case "f32add":
            return [floats(*y)]
        case "f32d":
            return [np.float32([0.03]), np.uint8([77])]
    return []


def integer_epilogues(columns: int, reach: int) -> list[Epilogue]:
    return [
        to_codes(columns, reach),
        added(columns, reach),
        added(columns, reach, signed=True),
        added(columns, reach, residual_first=True),
        Int32(),
        dynamic(columns),
    ]


def float_epilogues() -> list[Epilogue]:
    return [Float(), Float(0.0, 6.0), Float(-1.0, residual=True)]
