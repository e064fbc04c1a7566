"""Generated images for people: the samples of each checkpoint, and one sheet that shows them getting better."""

import io
import logging
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ckptwatch.publish.atomic import sync_directory, write_if_changed

_log = logging.getLogger(__name__)

COLUMNS = 8
TILE = 128      # pixels
LABEL = 96      # pixels, width of the column of labels
ROWS = 64       # JPEG ends at 65,535 pixels, and nobody scrolls that far
Row = tuple[str, list[Path]]
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def samples_directory(run_directory: Path, checkpoint_stem: str, variant: str) -> Path:
    """Where the samples of a checkpoint go: `<run>/evaluation_samples/<stem>[-variant]/`."""
    name = f"{checkpoint_stem}-{variant}" if variant else checkpoint_stem
    return run_directory / "evaluation_samples" / name.replace("/", "_")


def publish_samples(source: Path, target: Path) -> int:
    """Copy the plain files of `source` to a new directory that then takes the place of `target`; returns how many.

    Links, devices and subdirectories are left out: the source was filled by the user's sampler. A reader sees the old
    samples, for a moment none, or all of the new ones. Raises OSError; then `target` is as it was.
    """
    fresh = target.with_name(f".{target.name}.new")
    stale = target.with_name(f".{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    if stale.exists() and not target.exists():  # killed between the two renames
        stale.rename(target)
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        copied = _copy_files(source, fresh)
        sync_directory(fresh)
        if target.exists():
            target.rename(stale)
        fresh.rename(target)
    except BaseException:
        if stale.exists() and not target.exists():
            stale.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_directory(target.parent)
    shutil.rmtree(stale, ignore_errors=True)
    return copied


def write_overview(
    directory: Path, entries: Sequence[tuple[str, Path]], target: Path, *, columns: int = COLUMNS, tile: int = TILE
) -> bool:
    """One sheet (JPEG) with a labelled row per checkpoint, in the order given. True if the file changed.

    An entry is a label ("385k") and where its samples are, relative to `directory`: a directory of images, of which the
    first `columns` are shown, or one image. Of very many checkpoints an even choice is shown, first and last included.
    """
    rows = [(label, images) for label, path in entries if (images := _images(directory / path, columns))]
    if not rows:
        return False
    rows = _even_choice(rows, ROWS)
    width = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (LABEL + width * tile, len(rows) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (label, images) in enumerate(rows):
        text = "\n".join(line[:LABEL // 7] for line in label.splitlines()[:4])
        draw.multiline_text((4, y * tile + tile // 2 - 18), text, fill="black")
        for x, path in enumerate(images):
            sheet.paste(_thumbnail(path, tile), (LABEL + x * tile, y * tile))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    return write_if_changed(target, buffer.getvalue())


def _copy_files(source: Path, target: Path) -> int:
    copied = 0
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        if not entry.is_file(follow_symlinks=False):
            continue
        # Opened, then looked at: the name may have been exchanged in between, and opening a pipe must not block.
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as read:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue
            with (target / entry.name).open("wb") as write:
                shutil.copyfileobj(read, write)
                write.flush()
                os.fsync(write.fileno())
        copied += 1
    return copied


def _images(path: Path, limit: int) -> list[Path]:
    """The generated images first; comparisons and prompts lie beside them."""
    if path.is_file():
        return [path]
    try:
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES)
    except OSError:
        return []
    generated = [p for p in found if p.name.startswith("eval_generated_")]
    return (generated or found)[:limit]


def _even_choice(items: list[Row], limit: int) -> list[Row]:
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def _thumbnail(path: Path, tile: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (tile, tile))  # decodes a large JPEG at a fraction of its size
            return ImageOps.pad(image.convert("RGB"), (tile, tile), color="white")
    except Exception as error:  # an image the sampler wrote: Pillow's plugins raise all kinds of errors
        _log.warning("cannot show sample %s: %s", path, error)
        return Image.new("RGB", (tile, tile), "lightgrey")
