"""Prompts of a recipe: sample i is generated from line i modulo their number."""

from pathlib import Path

from ckptwatch.evaluate.failures import recipe_error


def read_prompts(path: Path | None, count: int) -> tuple[str, ...]:
    """One prompt for each of `count` samples; empty strings where the recipe has no prompts (unconditional models).

    The file is UTF-8, one prompt a line; blank lines are no prompts. Raises EvaluationError (RECIPE) when it is missing,
    unreadable or has no prompt.
    """
    if path is None:
        return ("",) * count
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise recipe_error(
            "read prompts", str(error), path=path, hint="set `prompts` of the recipe to a UTF-8 file, one prompt a line",
        ) from error
    # Only "\n" ends a line: str.splitlines would also cut at form feeds and Unicode separators inside a prompt.
    lines = [line.strip("\r") for line in text.split("\n")]
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise recipe_error("read prompts", "the file has no prompts", path=path, hint="write one prompt a line")
    return tuple(prompts[i % len(prompts)] for i in range(count))
