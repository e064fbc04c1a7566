"""A real small training job, its networks and its show: what `ckptwatch demo` runs."""
