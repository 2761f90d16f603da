"""File → Model, with limits and typed errors. Loading a file runs no code from it."""

from qrt.loaders.onnx_file import load

__all__ = ["load"]
