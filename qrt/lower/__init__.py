"""Floor 4: a fused graph becomes programs and plans."""

from qrt.lower.executable import Executable

__all__ = ["Executable"]
