"""Matrix products, integer and float: one micro-kernel family, its table, and the ops on it."""

from qrt.ops.gemm.batched import BatchedMatMul
from qrt.ops.gemm.dense import Dense
from qrt.ops.gemm.epilogue import Codes, CodesAdd, DynamicFloat, Epilogue, Float, Int32
from qrt.ops.gemm.product import Product, Weights

__all__ = ["BatchedMatMul", "Codes", "CodesAdd", "Dense", "DynamicFloat", "Epilogue", "Float", "Int32", "Product", "Weights"]
