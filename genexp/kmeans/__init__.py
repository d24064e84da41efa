"""k-means as functions of tensors. Points come in blocks, so that a set may be larger than memory."""
