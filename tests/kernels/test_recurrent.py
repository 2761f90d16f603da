"""The recurrent kernels follow their reference over whole sequences."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.check import check

from qrt.core.errors import ModelError
from qrt.ops.op import Spec
from qrt.ops.recurrent import GATES, Recurrent


def real(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("cell", list(GATES))
@pytest.mark.parametrize(
    ("time", "batch", "directions", "n", "reverse"), [(1, 1, 1, 128, False), (7, 3, 1, 5, True), (5, 2, 2, 33, False), (0, 2, 1, 4, False)]
)
def test_cells(cell: str, time: int, batch: int, directions: int, n: int, reverse: bool) -> None:
    width = GATES[cell] * n
    extra = {"lstm_peeping": 3 * n, "gru_reset_after": n}.get(cell)
    op = Recurrent(cell, real(directions, width, n) / np.float32(n**0.5), None if extra is None else real(directions, extra), reverse)
    states = [real(directions, batch, n, seed=k) for k in range(1 + op.has_cell_state)]
    check(op, [real(time, batch, directions, width), *states], exact=False, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", list(GATES))
@pytest.mark.parametrize(("directions", "reverse"), [(1, False), (1, True), (2, False)])
def test_sequences_that_end_early_and_clipped_gates(cell: str, directions: int, reverse: bool) -> None:
    n, lengths = 5, np.array([3, 0, 7, 1], np.int32)
    width = GATES[cell] * n
    extra = {"lstm_peeping": 3 * n, "gru_reset_after": n}.get(cell)
    weights, late = real(directions, width, n), None if extra is None else real(directions, extra)
    inputs = [real(7, 4, directions, width), *(real(directions, 4, n, seed=k) for k in range(1 + cell.startswith("lstm")))]
    for op in (Recurrent(cell, weights, late, reverse, 0.4), Recurrent(cell, weights, late, reverse, coupled=True)):
        y, h = check(op, [*inputs, lengths], exact=False, rtol=1e-4, atol=1e-5)[:2]
        assert not y[3:, :, 0].any()
        assert not h[:, 1].any()
        np.testing.assert_array_equal(y[0 if reverse else 6, 0, 2], h[0, 2])
        check(op, inputs, exact=False, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "extra"),
    [
        ([(3, 2, 1, 8), (1, 2, 2), (1, 3, 2)], None),
        ([(3, 2, 1, 8), (1, 2, 2)], None),
        ([(3, 2, 1, 9), (1, 2, 2), (1, 2, 2)], None),
        ([(3, 2, 1, 8), (1, 2, 2), (1, 2, 2)], np.zeros((1, 6), np.float32)),
    ],
)
def test_what_does_not_fit_is_refused(shapes: list[tuple[int, ...]], extra: np.ndarray | None) -> None:
    with pytest.raises(ModelError):
        Recurrent("lstm", real(1, 8, 2), extra).infer([Spec(shape, np.dtype(np.float32)) for shape in shapes])
