"""Training and inference forms of a loaded model: its Dropout and BatchNormalization nodes, which act differently in either."""

from __future__ import annotations

from typing import Any

import numpy as np

from qrt.core.errors import InvalidInput
from qrt.graph import Model, all_graphs, attr_int, constant, ir, is_op, new_initializer, replace, unique_name
from qrt.graph.passes.convert_opset import convert_opset
from qrt.graph.passes.inline_functions import inline_functions

__all__ = ["allow_exported_model_train_eval", "model_is_exported", "move_exported_model_to_eval", "move_exported_model_to_train"]


def model_is_exported(m: Any) -> bool:
    """Whether `m` is a graph, as `qrt.load` gives it, and not a module or a function."""
    return isinstance(m, Model)


def move_exported_model_to_eval(model: Model) -> Model:
    """Lets every Dropout pass what it gets, and every BatchNormalization use its statistics. Changes `model` and returns it.

    A model that is so already does not change. Where statistics renewed by a BatchNormalization were read, the old ones are.
    """
    _check_model(model)
    for node in _switched(model):
        if is_op(node, "Dropout"):
            node.resize_inputs(min(len(node.inputs), 2))  # without the third input, training_mode is false
        else:
            _drop_statistics(node)
            node.attributes.pop("training_mode", None)
    return model


def move_exported_model_to_train(model: Model) -> Model:
    """Lets every Dropout drop, and every BatchNormalization use the statistics of its batch. Changes `model` and returns it.

    A model that is so already does not change; one older than opset 14, which has no such forms, is brought to opset 21. ONNX nodes have no
    memory: running statistics stay as they are.
    """
    _check_model(model)
    if any(not _trains(node) for node in _switched(model)):
        inline_functions(model)
        convert_opset(model)
    for node in _switched(model):
        if _trains(node):
            continue
        if is_op(node, "BatchNormalization"):
            node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
            node.resize_outputs(3)  # ONNX asks for the renewed statistics, whoever reads them
            for value, kind in zip(node.outputs[1:], ("mean", "var"), strict=True):
                value.name = unique_name(model.graph, f"{node.outputs[0].name}_{kind}")
            continue
        node.resize_inputs(3)
        if node.inputs[1] is None:  # onnx.reference wants it written out
            node.replace_input_with(1, new_initializer(model.graph, f"{node.name}_ratio", np.array(0.5, np.float32)))
        node.replace_input_with(2, new_initializer(model.graph, f"{node.name}_training_mode", np.array(True)))
    return model


def allow_exported_model_train_eval(model: Model) -> Model:
    """Gives `model` the methods `train(mode=True)` and `eval()`, which move it as the functions above do, and returns it.

    Clones of the model do not have them.
    """
    _check_model(model)

    def train(mode: bool = True) -> Model:
        return move_exported_model_to_train(model) if mode else move_exported_model_to_eval(model)

    model.__dict__.update(train=train, eval=lambda: move_exported_model_to_eval(model))
    return model


def _check_model(model: Model) -> None:
    if not isinstance(model, Model):
        raise InvalidInput(f"the model is a {type(model).__name__}: give a qrt.Model, as qrt.load makes it of a file")


def _switched(model: Model) -> list[ir.Node]:
    """The nodes that act differently in training, subgraphs and functions included."""
    graphs: list[ir.Graph | ir.Function] = list(all_graphs(model.graph))
    graphs.extend(model.ir.functions.values())
    return [node for graph in graphs for node in graph if is_op(node, "Dropout", "BatchNormalization")]


def _trains(node: ir.Node) -> bool:
    if is_op(node, "BatchNormalization"):
        return attr_int(node, "training_mode", 0) == 1
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return training is not None and bool(training.any())


def _drop_statistics(node: ir.Node) -> None:
    """Leaves the node its first output alone; readers of the renewed statistics read the old ones."""
    # Before opset 14 two more outputs held the same statistics.
    for value, old in zip(node.outputs[1:], [*node.inputs[3:5]] * 2, strict=False):
        if old is not None and node.graph is not None and (value.uses() or value.is_graph_output()):
            same = ir.node("Identity", [old])
            same.outputs[0].type, same.outputs[0].shape = value.type, value.shape
            node.graph.insert_after(node, same)
            replace(value, same.outputs[0])
    node.resize_outputs(1)
