"""Recorders: each receives snapshots of a run and writes one kind of file."""
