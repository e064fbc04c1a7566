"""SQLAlchemy on SQLite. The only room that knows SQL; everything it gives out is a dataclass of `ckptwatch.model`."""
