"""Image operations on tensors: grids, animations, scatter plots, resizing, color, augmentation."""
