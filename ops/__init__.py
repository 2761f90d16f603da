"""Kernel families."""
