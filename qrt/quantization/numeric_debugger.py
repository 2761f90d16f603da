"""The numeric debugger: where, node by node, a quantized model leaves the float one.

    generate_numeric_debug_handle(model)
    quantized = quantize(model, data)
    real, int8 = prepare_for_propagation_comparison(model), prepare_for_propagation_comparison(quantized)
    for x in samples:
        real(x), int8(x)
    summaries = compare_results(extract_results_from_loggers(real), extract_results_from_loggers(int8))
    worst = min(summaries.values(), key=lambda summary: summary.results[0].sqnr)

Both models run as they are written, float nodes between Q and DQ included, with the error of all layers before. (`qrt compare`
compares what sessions compute, codes and all, and keeps nothing.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field

import numpy as np

from qrt.core.accuracy import compute_sqnr, mean_squared_error
from qrt.core.errors import InvalidInput, ModelError
from qrt.core.record import record
from qrt.graph import Model, ir
from qrt.graph.passes import prepare
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.quantization.batches import Batch, feeds_of

__all__ = [
    "CUSTOM_KEY",
    "NUMERIC_DEBUG_HANDLE_KEY",
    "LoggedModel",
    "NodeAccuracySummary",
    "NodeSourceDebugInfo",
    "OutputLogger",
    "QuantizationComparisonResult",
    "Recorded",
    "compare_results",
    "compute_sqnr",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "prepare_for_propagation_comparison",
]

CUSTOM_KEY = "custom"
NUMERIC_DEBUG_HANDLE_KEY = "numeric_debug_handle"

# What a node gave in one run: an array, or one for each output that somebody reads.
Recorded = np.ndarray | tuple[np.ndarray, ...]
# The name of the node, the path of its module, and what it gave in each run.
Results = Mapping["NodeSourceDebugInfo", tuple[str, str, list[Recorded]]]


@record
class NodeSourceDebugInfo:
    """Which node of the original model a recording belongs to.

    `name`: that of its first output, which quantization keeps. `handle`: its numeric debug handle; None where it has none.
    """

    name: str
    handle: int | None = None


def generate_numeric_debug_handle(ep: Model) -> None:
    """Gives every node of `ep` that has no handle a new one: integers, breadth first, those of bodies of If, Loop and Scan after.

    A handle is kept in `node.meta["custom"]["numeric_debug_handle"]` and, so that it is saved with the model, in
    `node.metadata_props["numeric_debug_handle"]`. Quantization keeps both. Raises ModelError where a file holds one that is no integer.
    """
    _check_model(ep)
    nodes = list(_breadth_first(ep.graph))
    handles = [_handle(node) for node in nodes]
    free = max((handle for handle in handles if handle is not None), default=0) + 1
    for node, handle in zip(nodes, handles, strict=True):
        if handle is None:
            handle, free = free, free + 1
        # A new dict: clones of the model share the old one.
        node.meta[CUSTOM_KEY] = {**node.meta.get(CUSTOM_KEY, {}), NUMERIC_DEBUG_HANDLE_KEY: handle}
        node.metadata_props[NUMERIC_DEBUG_HANDLE_KEY] = str(handle)


class OutputLogger:
    """Keeps a copy of whatever it is called with, in `stats`, and returns it.

    `debug_info`: which node it stands behind. `node_name`: its name. `nn_module_stack`: the path of its module, as exporters write it in
    front of the last "/" of a node's name; "" where they do not.
    """

    def __init__(self, debug_info: NodeSourceDebugInfo, node_name: str | None = None, nn_module_stack: str = "") -> None:
        self.debug_info = debug_info
        self.node_name = node_name
        self.nn_module_stack = nn_module_stack
        self.stats: list[Recorded] = []

    def __call__(self, x: Recorded) -> Recorded:
        """Record `x`."""
        return self.forward(x)

    def forward(self, x: Recorded) -> Recorded:
        """Record `x`."""
        self.stats.append(tuple(array.copy() for array in x) if isinstance(x, tuple) else x.copy())
        return x

    def __repr__(self) -> str:
        return f"OutputLogger({self.debug_info}, node_name={self.node_name!r}, num_stats={len(self.stats)})"


class LoggedModel:
    """A model with an OutputLogger behind each node of its top graph: call it with inputs.

    `loggers`: in the order of the nodes. They keep every run's arrays: a handful of samples is meant.
    """

    def __init__(self, model: Model) -> None:
        self.model = prepare(model)
        nodes = list(self.model.graph)
        self.loggers = [_logger(node) for node in nodes]
        self._outputs = [[value.name for value in node.outputs if value.name] for node in nodes]
        taps = [name for names in self._outputs for name in names]
        self._executable = Executable(self.model, host_target(), 1, taps)
        self._runs = 0

    def __call__(self, batch: Batch) -> list[np.ndarray]:
        """The outputs, in the model's order, for `batch`: a dict of name → array, or one array for a model with one input.

        Raises CalibrationError for a batch that does not fit the inputs.
        """
        seen: dict[str, np.ndarray] = {}

        def tap(name: str, array: np.ndarray) -> None:
            if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":  # neither sequences nor strings
                seen[name] = array.copy()

        outputs = self._executable.run(feeds_of(self.model, batch, f"run {self._runs} of {self.model.name}"), tap)
        self._runs += 1
        for logger, names in zip(self.loggers, self._outputs, strict=True):
            arrays = tuple(seen[name] for name in names if name in seen)
            if arrays:
                logger(arrays if len(arrays) > 1 else arrays[0])
        return outputs


def prepare_for_propagation_comparison(model: Model) -> LoggedModel:
    """`model`, float or quantized, made callable, with a logger behind each of its nodes. `model` stays as it is."""
    _check_model(model)
    return LoggedModel(model)


def extract_results_from_loggers(model: LoggedModel) -> dict[NodeSourceDebugInfo, tuple[str, str, list[Recorded]]]:
    """For each node that gave something: its name, the path of its module, and what it gave in each run.

    A node that is computed beforehand, from constants alone, gives nothing. Raises InvalidInput for a model that was never run.
    """
    found = {logger.debug_info: (logger.node_name or "", logger.nn_module_stack, logger.stats) for logger in model.loggers if logger.stats}
    if not found:
        raise InvalidInput(f"{model.model.name}: the loggers saw nothing: call the prepared model with samples first")
    return found


@record
class QuantizationComparisonResult:
    """What a node gave in one run of either model. Raises InvalidInput for arrays of different shapes."""

    actual: Recorded = field(repr=False)
    ref: Recorded = field(repr=False)

    def __post_init__(self) -> None:
        mine, theirs = _shapes(self.actual), _shapes(self.ref)
        if mine != theirs:
            raise InvalidInput(f"cannot compare shapes {mine} and {theirs}")

    @property
    def mse_loss(self) -> float | tuple[float, ...]:
        """The mean squared difference; for several outputs a tuple."""
        return self.loss(mean_squared_error)

    @property
    def sqnr(self) -> float | tuple[float, ...]:
        """`compute_sqnr(actual, ref)` in dB; for several outputs a tuple."""
        return self.loss(compute_sqnr)

    def loss(self, loss_function: Callable[[np.ndarray, np.ndarray], float]) -> float | tuple[float, ...]:
        """`loss_function(actual, ref)`; for several outputs a tuple."""
        if isinstance(self.actual, tuple):
            return tuple(loss_function(a, b) for a, b in zip(self.actual, self.ref, strict=True))
        return loss_function(self.actual, np.asarray(self.ref))

    def __repr__(self) -> str:
        return f"QuantizationComparisonResult(mse_loss={self.mse_loss}, sqnr={self.sqnr})"


@record
class NodeAccuracySummary:
    """A node of the reference beside its counterpart; `results`: a comparison for each run."""

    debug_info: NodeSourceDebugInfo
    actual_node_name: str
    actual_module_stack: str
    ref_node_name: str
    ref_module_stack: str
    results: Sequence[QuantizationComparisonResult]


def compare_results(ref_results: Results, actual_results: Results) -> dict[NodeSourceDebugInfo, NodeAccuracySummary]:
    """A summary for each node of the reference that the other model has too, in the reference's order.

    Nodes belong together that have the same handle or, where there is no such, the same name of their first output. Raises InvalidInput for
    models that have no node in common, did not run equally often, or gave arrays of different shapes.
    """
    by_handle: dict[int | None, NodeSourceDebugInfo] = {key.handle: key for key in actual_results if key.handle is not None}
    by_name = {key.name: key for key in actual_results}
    found = {}
    for key, (ref_name, ref_stack, ref_stats) in ref_results.items():
        counterpart = by_handle.get(key.handle) or by_name.get(key.name)
        if counterpart is None:
            continue
        name, stack, stats = actual_results[counterpart]
        if len(stats) != len(ref_stats):
            raise InvalidInput(f"{key.name!r} was recorded {len(ref_stats)} and {len(stats)} times: run both models on the same samples")
        try:
            results = [QuantizationComparisonResult(actual=a, ref=b) for a, b in zip(stats, ref_stats, strict=True)]
        except InvalidInput as error:
            raise InvalidInput(f"{key.name!r}, node {ref_name!r} beside {name!r}: {error}: run both models on the same samples") from None
        found[key] = NodeAccuracySummary(key, name, stack, ref_name, ref_stack, results)
    if not found:
        raise InvalidInput("the two results have no node in common: these are not two forms of one model")
    return found


def _check_model(model: Model) -> None:
    if not isinstance(model, Model):
        raise InvalidInput(f"the model is a {type(model).__name__}: give a qrt.Model, as qrt.load makes it of a file")


def _breadth_first(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of `graph`, then those of the graphs they carry, and so on."""
    graphs = deque([graph])
    while graphs:
        for node in graphs.popleft():
            yield node
            for attr in node.attributes.values():
                if attr.type == ir.AttributeType.GRAPH:
                    graphs.append(attr.as_graph())
                elif attr.type == ir.AttributeType.GRAPHS:
                    graphs.extend(attr.as_graphs())


def _handle(node: ir.Node) -> int | None:
    held = node.meta.get(CUSTOM_KEY, {}).get(NUMERIC_DEBUG_HANDLE_KEY, node.metadata_props.get(NUMERIC_DEBUG_HANDLE_KEY))
    if held is None:
        return None
    try:
        return int(held)
    except ValueError:
        raise ModelError(f"node {node.name!r} has the {NUMERIC_DEBUG_HANDLE_KEY} {held!r} among its metadata: make it an integer") from None


def _logger(node: ir.Node) -> OutputLogger:
    name = node.name or ""
    return OutputLogger(NodeSourceDebugInfo(node.outputs[0].name or "", _handle(node)), name, name.rpartition("/")[0])


def _shapes(recorded: Recorded) -> list[tuple[int, ...]]:
    return [array.shape for array in recorded] if isinstance(recorded, tuple) else [recorded.shape]
