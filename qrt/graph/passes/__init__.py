"""Passes: each brings the whole graph one step nearer to a clean form. One pass a file: requires → call → ensures."""

from __future__ import annotations

from qrt.core.errors import InvalidInput
from qrt.graph.model import Model
from qrt.graph.passes.convert_opset import OPSET, convert_opset
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.drop_identity import drop_identity
from qrt.graph.passes.fold_batchnorm import fold_batchnorm
from qrt.graph.passes.fold_constants import fold_constants
from qrt.graph.passes.fold_shapes import fold_shapes
from qrt.graph.passes.infer_shapes import check_types, infer_spelled
from qrt.graph.passes.inline_functions import inline_functions
from qrt.graph.passes.lift_constants import lift_constants
from qrt.graph.passes.name_everything import name_everything
from qrt.graph.passes.split_batchnorm import split_batchnorm
from qrt.graph.passes.widen_halves import widen_halves

__all__ = ["OPSET", "PASSES", "clean", "prepare"]

# In this order, again and again until none changes anything: each fold lets inference see further, which lets the next fold in.
PASSES = (
    inline_functions,
    lift_constants,
    drop_dead,  # what nobody reads need not be converted: a Dropout's mask has changed its type
    widen_halves,
    convert_opset,
    name_everything,
    infer_spelled,
    drop_identity,
    fold_shapes,
    fold_constants,
    fold_batchnorm,
    split_batchnorm,
    drop_dead,
)

# Each round knows at least one more shape than the one before; graphs met so far settle in two or three.
_MAX_ROUNDS = 10


def prepare(model: Model) -> Model:
    """A clean copy of `model`: same inputs, outputs and results (to float rounding), in the form that rules and the lowering take.

    Constants are initializers, floats of 16 bits are float32 inside, the opset is at least 21, every node has its name, every value of the
    top graph its dtype and rank.
    Raises ModelError for a graph that is ill-typed or whose types cannot be inferred, InvalidInput for what is no Model.
    """
    if not isinstance(model, Model):
        raise InvalidInput(f"the model is a {type(model).__name__}: give a qrt.Model, as qrt.load makes it of a file")
    return clean(model.clone())


def clean(model: Model) -> Model:
    """`prepare`, of the model itself."""
    for _ in range(_MAX_ROUNDS):
        if not _run_all(model):
            break
    check_types(model)
    return model


def _run_all(model: Model) -> bool:
    changed = False
    for run in PASSES:
        changed |= run(model)
    return changed
