"""Sweeps: planning, running, resuming and summarizing many runs started by one command."""
