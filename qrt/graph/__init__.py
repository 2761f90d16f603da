"""The only door to onnx_ir: the Model, words to read and change its nodes, passes and rules.

Other floors take `ir` (the onnx_ir package) from here and import it nowhere else.
"""

from qrt.graph._import import ir
from qrt.graph.model import Model, TensorInfo
from qrt.graph.nodes import (
    all_graphs,
    attr_float,
    attr_int,
    attr_ints,
    attr_str,
    constant,
    has_subgraph,
    is_constant,
    is_graph_output,
    is_op,
    new_initializer,
    only_use,
    producer,
    replace,
    unique_name,
)
from qrt.graph.single import single_node_model

__all__ = [
    "Model",
    "TensorInfo",
    "all_graphs",
    "attr_float",
    "attr_int",
    "attr_ints",
    "attr_str",
    "constant",
    "has_subgraph",
    "ir",
    "is_constant",
    "is_graph_output",
    "is_op",
    "new_initializer",
    "only_use",
    "producer",
    "replace",
    "single_node_model",
    "unique_name",
]
