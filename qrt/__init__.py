"""Quantized inference, in Python, at the speed of the hardware."""
