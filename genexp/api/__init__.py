"""Python interface: runs, sweeps and comparisons, as the commands make them."""
