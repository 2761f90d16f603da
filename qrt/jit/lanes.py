"""Vector layouts that packing (NumPy) and kernels (IR) must agree on."""

from __future__ import annotations

__all__ = ["FOUR_ORDER", "LANES", "ORDERS", "PAIR_ORDER", "QUAD_ORDER"]

# 32-bit lanes of one vector.
LANES = {"avx512vnni": 16, "avxvnni": 8, "avx2": 8, "neon_dot": 4, "generic": 4}

# Which byte (or column) of a block of 64 each lane of four vectors holds, vector after vector: what interleaving bytes within 128
# bits gives, and saturating packs take back.
QUAD_ORDER = tuple(16 * (lane // 4) + 4 * vector + lane % 4 for vector in range(4) for lane in range(16))

# The same for two vectors a row, where two rows of 32 columns are packed together: column of each lane of a row's two vectors.
PAIR_ORDER = tuple(8 * (lane // 4) + 4 * vector + lane % 4 for vector in range(2) for lane in range(16))

# And for four vectors of 256 bits, in blocks of 32.
FOUR_ORDER = tuple(16 * (lane // 4) + 4 * vector + lane % 4 for vector in range(4) for lane in range(8))

# By the columns of a block.
ORDERS = {32: PAIR_ORDER, 64: QUAD_ORDER}
