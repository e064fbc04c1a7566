"""Measurements. Each prints a table of ratios against a named peer that ran in the same minutes; none asserts a time."""
