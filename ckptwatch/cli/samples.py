"""samples: pairs of prediction and target that a checkpoint's evaluation showed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, outline_of

if TYPE_CHECKING:
    from rich.console import Console

    from ckptwatch.errors import CkptwatchError
    from ckptwatch.model import Checkpoint, Evaluation

LONGEST = 600  # characters of one text in the table; the file has more


def samples(
    path: Annotated[str, typer.Argument(
        help="A checkpoint: its path, an alias, or RUN@STEP; or a directory or file with kept pairs.")],
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="At most so many of each evaluation.")] = None,
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Show predictions beside targets, as a checkpoint's evaluation showed them."""
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.pairs import read_pairs

    found = _kept(path, config)
    shown = []
    for title, directory in found:
        try:
            shown.append((title, directory, read_pairs(directory, count)))
        except OSError as error:
            raise CkptwatchError("show samples", error.strerror or str(error), path=directory,
                                 hint="let it be readable") from error
    if json:
        emit_json({"version": 1, "evaluations": [
            {**title, "file": str(file), "samples": list(pairs)} for title, file, pairs in _with_files(shown)]})
        return
    screen = console(ascii_only=ascii_only)
    for title, file, pairs in _with_files(shown):
        variant = f" [{title['variant']}]" if title.get("variant") else ""
        words = f" of {title['checkpoint']}{variant} by recipe {title['recipe']}" if title else ""
        screen.print(f"{len(pairs)} pairs{words}: {file}", soft_wrap=True)
        show_pairs(screen, pairs)


def show_pairs(screen: "Console", pairs: Sequence[Mapping[str, Any]]) -> None:
    """A table: prediction beside target, then whatever else each pair says."""
    from rich import box
    from rich.table import Table

    from ckptwatch.pairs import columns_of

    rows = [columns_of(pair) for pair in pairs]
    table = Table(box=box.HORIZONTALS if len(rows) > 1 else box.SIMPLE_HEAD, show_lines=False, pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    for name in ("prediction", "target"):
        table.add_column(name, ratio=2, overflow="fold")
    others = any(rest for _, _, rest in rows)
    if others:
        table.add_column("other", ratio=1, overflow="fold")
    for number, (prediction, target, rest) in enumerate(rows):
        cells = [str(number), _plain(prediction), _plain(target)]
        table.add_row(*cells, *([_plain("\n".join(f"{key}: {value}" for key, value in rest.items()))] if others else []))
    screen.print(table)


def _plain(value: Any) -> str:
    """As text for a terminal: a prediction may hold anything, escape sequences too."""
    text = "" if value is None else str(value)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text)


def _with_files(shown: Any) -> Any:
    from ckptwatch.pairs import FILE

    return [(title, directory / FILE, pairs) for title, directory, pairs in shown]


# ---- where they are -------------------------------------------------------------------------------------------------


def _kept(target: str, config: Path | None) -> list[tuple[dict[str, Any], Path]]:
    """What each is of, and the directory it lies in. Raises CkptwatchError where there are none, with the reason."""
    from ckptwatch.pairs import FILE

    path = Path(target)
    if path.name == FILE and path.is_file():
        return [({}, path.parent)]
    if (path / FILE).is_file():
        return [({}, path)]
    checkpoint, done = _evaluations(target, config)
    found = [({"checkpoint": checkpoint.path.name, "recipe": e.recipe, "variant": e.variant}, e.samples)
             for e in done if e.samples is not None and (e.samples / FILE).is_file()]
    if not found:
        raise _none(checkpoint, done)
    return found


def _evaluations(target: str, config: Path | None) -> "tuple[Checkpoint, tuple[Evaluation, ...]]":
    """A removed checkpoint is still known, and its pairs are still there."""
    from ckptwatch.commands import find_checkpoint
    from ckptwatch.errors import UsageError
    from ckptwatch.store import evaluations
    from ckptwatch.store.database import open_reading

    db = open_reading(outline_of(config).state_dir)
    if db is None:
        raise UsageError("find checkpoint", "nothing is recorded yet", path=target,
                         hint="`ckptwatch eval PATH --log-samples` shows pairs at once")
    try:
        with db.read() as conn:
            try:
                checkpoint = find_checkpoint(conn, target)
            except UsageError:
                checkpoint = find_checkpoint(conn, target, in_trash=True)
            return checkpoint, evaluations.of_checkpoint(conn, checkpoint.id)
    finally:
        db.close()


def _none(checkpoint: "Checkpoint", done: "tuple[Evaluation, ...]") -> "CkptwatchError":
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.model import EvaluationState
    from ckptwatch.planning import state_words

    finished = [e for e in done if e.state is EvaluationState.DONE]
    pictures = next((e for e in finished if e.samples is not None and e.samples.is_dir()), None)
    if pictures is not None:
        cause, hint = "its evaluation kept pictures, not pairs", f"they are in {pictures.samples}"
    elif finished:
        cause = f"its evaluation by recipe {finished[0].recipe} kept no pairs"
        hint = (f"set `log_samples: true` in the recipe, let its command print {{\"sample\": {{\"prediction\": …, "
                f"\"target\": …}}}} lines, then `ckptwatch retry {checkpoint.path}`; publish.samples must not be off")
    elif done:
        cause, hint = state_words(done[-1]), "see `ckptwatch status`"
    else:
        cause = "it has not been evaluated"
        hint = "give its run a recipe with a command and `log_samples: true`; or `ckptwatch eval PATH --log-samples`"
    return CkptwatchError("show samples", cause, path=checkpoint.path, hint=hint)
