"""Building, running, resuming and loading a run."""
