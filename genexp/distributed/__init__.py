"""Data-parallel training of one run by several processes.

Each rank computes its rows of every batch. Rank 0 does everything else.
"""
