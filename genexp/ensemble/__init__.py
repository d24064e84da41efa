"""Many models as one computation: runs that differ in numbers only learn side by side, as rows of tensors."""
