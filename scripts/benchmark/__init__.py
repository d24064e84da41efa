"""Measuring genexp against what a user would write or pick instead."""
