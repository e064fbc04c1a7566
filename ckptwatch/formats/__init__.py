"""Checkpoint layouts: one module per family, each answering the questions of `formats.base.Format`."""
