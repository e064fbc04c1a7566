"""The trainer's own records: found, read as they grow, and turned into rows. Nothing is written, nothing is locked."""
