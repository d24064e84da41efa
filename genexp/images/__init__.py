"""Image operations on tensors: grids, resizing, color, augmentation."""
