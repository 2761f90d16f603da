"""QConfig and QConfigMapping: which observers a node's activations and weights get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qrt.observers import HistogramObserver, ObserverBase, default_per_channel_weight_observer, default_weight_observer

__all__ = ["QConfig", "QConfigMapping", "default_qconfig", "per_channel_weight_observer", "weight_observer"]

# Codes −127..127: products with uint8 cannot overflow their pairs' sums any sooner for a negative weight than for a positive one, and
# ONNX Runtime writes the same.
per_channel_weight_observer = default_per_channel_weight_observer.with_args(quant_min=-127, quant_max=127)
weight_observer = default_weight_observer.with_args(quant_min=-127, quant_max=127)


@dataclass(frozen=True)
class QConfig:
    """How a node is quantized: what makes the observers of its activations and of its weight.

    `activation`: per tensor, quint8. `weight`: qint8 and symmetric, per channel or per tensor; the channel axis follows from the operator.
    """

    activation: Callable[[], ObserverBase] = HistogramObserver
    weight: Callable[[], ObserverBase] = per_channel_weight_observer


default_qconfig = QConfig()


@dataclass
class QConfigMapping:
    """Which QConfig a node gets; None leaves it float. A node's name counts before its operator type, and that before the global one."""

    global_qconfig: QConfig | None = default_qconfig
    object_type_qconfigs: dict[str, QConfig | None] = field(default_factory=dict)
    module_name_qconfigs: dict[str, QConfig | None] = field(default_factory=dict)

    def set_global(self, global_qconfig: QConfig | None) -> QConfigMapping:
        """The QConfig of every node that nothing else is said of."""
        self.global_qconfig = global_qconfig
        return self

    def set_object_type(self, object_type: str, qconfig: QConfig | None) -> QConfigMapping:
        """The QConfig of every node of an operator type, for instance "Conv"."""
        self.object_type_qconfigs[object_type] = qconfig
        return self

    def set_module_name(self, module_name: str, qconfig: QConfig | None) -> QConfigMapping:
        """The QConfig of one node, by name."""
        self.module_name_qconfigs[module_name] = qconfig
        return self

    def of(self, name: str, op_type: str) -> QConfig | None:
        """The QConfig of the node `name`."""
        if name in self.module_name_qconfigs:
            return self.module_name_qconfigs[name]
        return self.object_type_qconfigs.get(op_type, self.global_qconfig)
