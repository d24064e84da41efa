"""Benchmarks of genexp against hand-written code and other libraries."""
