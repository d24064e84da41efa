"""Recorders that a run uses if its configuration names them. The name of a file is that of its recorder."""
