"""Construction, execution, resumption and loading of runs."""
