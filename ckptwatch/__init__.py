"""ckptwatch: watches training runs, scores finished checkpoints out of process, keeps the ones worth keeping."""

__version__ = "0.1.0"
