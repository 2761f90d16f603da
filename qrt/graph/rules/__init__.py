"""Rules: each turns one pattern into one node of the fused form (docs/architecture.md), or says why not. One fusion a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.model import Model
from qrt.graph.nodes import naming
from qrt.graph.passes.drop_dead import drop_dead, drop_unread
from qrt.graph.passes.name_everything import name_everything
from qrt.graph.rules.dynamic import DYNAMIC
from qrt.graph.rules.float_fusion import FLOAT_FUSION
from qrt.graph.rules.left_float import LEFT_FLOAT
from qrt.graph.rules.lut import LUT
from qrt.graph.rules.movement import BOUND_UP, DEQUANTIZE_DOWN, QUANTIZE_UP
from qrt.graph.rules.qbinary import QBINARY
from qrt.graph.rules.qconcat import QCONCAT
from qrt.graph.rules.qconv import QCONV, QCONV_FLOAT
from qrt.graph.rules.qconv_add import QCONV_ADD
from qrt.graph.rules.qmatmul import QMATMUL, QMATMUL_FLOAT
from qrt.graph.rules.qoperator import QOPERATOR
from qrt.graph.rules.qspatial import QSPATIAL
from qrt.graph.rules.rule import DOMAIN, Rule, WhyNot
from qrt.graph.rules.spelled_out import GELU, LAYER_NORM, RESIDUAL_NORM, SCALED_SOFTMAX
from qrt.graph.rules.unsigned import CANCEL, FLIP_DEQUANTIZE, FLIP_DOWN, FLIP_QUANTIZE
from qrt.graph.rules.widen import WIDEN

__all__ = ["DOMAIN", "FLOAT_RULES", "RULES", "FusionReport", "Miss", "fuse"]

# In this order, again and again until none changes anything: one spelling first, then uint8 everywhere, then Q and DQ beside each other.
RULES = (
    QOPERATOR,
    WIDEN,
    FLIP_QUANTIZE,
    FLIP_DEQUANTIZE,
    FLIP_DOWN,
    CANCEL,
    BOUND_UP,
    DEQUANTIZE_DOWN,
    QUANTIZE_UP,
    LUT,
    QCONV,
    QMATMUL,
    QBINARY,
    QCONCAT,
    QSPATIAL,
    QCONV_ADD,
    DYNAMIC,
)

# What is left once no more can become int8.
FLOAT_RULES = (QCONV_FLOAT, QMATMUL_FLOAT, GELU, LAYER_NORM, SCALED_SOFTMAX, FLOAT_FUSION, RESIDUAL_NORM)

# Each round brings Q and DQ one node closer in the longest chain of nodes that only move data.
_MAX_ROUNDS = 100


@record
class Miss:
    """A node that could have been int8 and is not: the rule that nearly matched, and why it did not."""

    node: str
    op_type: str
    rule: str
    reason: str


@dataclass
class FusionReport:
    """What `fuse` did. `fused`: rule → how often it matched; `misses`: what is still float, and why."""

    fused: dict[str, int] = field(default_factory=dict)
    misses: list[Miss] = field(default_factory=list)

    @property
    def why(self) -> dict[str, str]:
        """Node → why it is not int8."""
        return {miss.node: miss.reason for miss in reversed(self.misses)}


def fuse(model: Model) -> FusionReport:
    """Bring a prepared model (`passes.prepare`) to the fused form, in place."""
    report = FusionReport()
    with naming(model.graph):
        _until_settled(model, RULES, report)
        misses = list(_misses(model, (*RULES, LEFT_FLOAT)))
        _until_settled(model, FLOAT_RULES, report)
    drop_dead(model)
    model.ir.opset_imports.setdefault(DOMAIN, 1)
    int8 = {node.name for node in model.graph if node.domain == DOMAIN and node.op_type.startswith("Q")}
    report.misses = [miss for miss in misses if miss.node not in int8]
    name_everything(model)
    return report


def _until_settled(model: Model, rules: Iterable[Rule], report: FusionReport) -> None:
    for _ in range(_MAX_ROUNDS):
        matched = 0
        for rule in rules:
            count = sum(_apply(rule, node) for node in _roots(model, rule))
            if count:
                report.fused[rule.name] = report.fused.get(rule.name, 0) + count
                drop_unread(model.graph)  # what nobody reads any more must not count as a reader
            matched += count
        if not matched:
            return


def _apply(rule: Rule, node: ir.Node) -> bool:
    if node.graph is None:
        return False  # another match took it
    found = rule.match(node)
    if found is None or isinstance(found, WhyNot):
        return False
    rule.rewrite(node, found)
    return True


def _roots(model: Model, rule: Rule) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in rule.roots]


def _misses(model: Model, rules: Iterable[Rule]) -> Iterator[Miss]:
    for rule in rules:
        for node in _roots(model, rule):
            found = rule.match(node)
            if isinstance(found, WhyNot):
                yield Miss(node.name or node.op_type, node.op_type, rule.name, str(found))
