"""Which start of a run a checkpoint belongs to: a run begun anew in the same directory counts from low steps again."""


def next_generation(
    *, newest: tuple[int, int | None] | None, newest_mtime: float | None, step: int | None, mtime: float,
    back_catalogue: bool,
) -> int:
    """The generation of a checkpoint just found.

    `newest` is (generation, step) of the newest checkpoint of the current generation, `newest_mtime` when that was
    written. A lower step written later begins a new generation. What is there when a run is first seen is one
    generation: copying tools give arbitrary times, and guessing would misorder the whole run.
    """
    if newest is None:
        return 0
    generation, newest_step = newest[0], newest[1]
    if back_catalogue or step is None or newest_step is None or newest_mtime is None:
        return generation
    return generation + 1 if step < newest_step and mtime > newest_mtime else generation
