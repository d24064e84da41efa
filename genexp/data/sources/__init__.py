"""Data sets, one file each, named as the data set. Files with a leading underscore are shared code."""
