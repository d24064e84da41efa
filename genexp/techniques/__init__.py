"""Techniques, one file each. Files with a leading underscore are shared code."""
