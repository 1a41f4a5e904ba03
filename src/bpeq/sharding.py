"""For rules of your own that couple examples or draw for each: the face of `core.sharding`."""

from bpeq.core.sharding import AXIS, count, drawn, gathered, mean, places

__all__ = ["AXIS", "count", "drawn", "gathered", "mean", "places"]
