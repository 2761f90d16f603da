"""What the loader takes, as prose and as numbers.

A file is opened once, read whole and never executed: no operator, function or library named in it runs while it loads. It must be
one protobuf message, which cannot pass 2 GiB; bigger models keep their weights in files beside it. Such a file must lie in the
model's own folder or below it, also after symbolic links are followed, and each tensor must use exactly the bytes its shape and
type call for, inside the file. Models handed over as bytes have no folder and so no such files.

Every tensor's data must have the length that its shape and type say. All tensors together may take 32 GiB, a tensor may have 32
dimensions (NumPy ends at 64), and a graph, with the model's own functions written out, 200,000 nodes: small files can describe
huge graphs, and checks that look at every node must end.

The standard operators are taken from opset 7 to the newest that the installed onnx package knows, and the IR version up to its
newest. Of other domains only the functions defined in the file, and the operators of ONNX Runtime's that are listed in
`qrt.graph.passes.vendor` (quantized ones) and `qrt.graph.passes.spell_out` (fused ones), are taken. Complex numbers and strings
may lie in a file, but no node may compute with them.
"""

from __future__ import annotations

MAX_FILE_BYTES = 2**31 - 1
MAX_MODEL_BYTES = 32 << 30
MAX_RANK = 32
MAX_NODES = 200_000
MIN_OPSET = 7
