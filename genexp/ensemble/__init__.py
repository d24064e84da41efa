"""Vectorized training of several runs that differ only in seeds and floats, stacked along a leading axis."""
