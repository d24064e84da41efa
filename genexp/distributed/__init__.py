"""One run over several processes: each does its rows of every batch, and the first of them all else."""
