"""Noticing: filesystem hints, the scan that is the truth, and what has settled."""
