"""k-means on tensors: initialization, Lloyd's algorithm and exact pruning of distance computations.

Points are read in blocks, so a data set may be larger than memory.
"""
