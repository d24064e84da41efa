"""Measure genexp against what a user would write or pick instead."""

from genexp.benchmark.command import main

main()
