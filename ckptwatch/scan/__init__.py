"""Looks at every number of a checkpoint's weights. With numpy, without torch, and nothing of it is loaded or run."""
