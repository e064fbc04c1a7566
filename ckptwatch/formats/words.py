"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """As in: 1 shard, 2 shards, 3 entries."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"
