"""Floor 0: NumPy only. Errors, dtypes, qparams, the one definition of rounding, targets."""
