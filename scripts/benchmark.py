"""Measure genexp against what a user would write or pick instead."""

from genexp.benchmark.command import main

if __name__ == "__main__":  # a process that reads pictures imports this file too
    main()
