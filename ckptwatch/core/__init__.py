"""Pure decisions: no clock, no files, no logging. Standard library and `ckptwatch.model` only."""
