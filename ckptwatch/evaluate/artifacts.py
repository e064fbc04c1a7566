"""Pictures kept for people: the first samples, each beside its original where there is one, and a contact sheet."""

import math
from pathlib import Path

from PIL import Image
from torch import Tensor

from ckptwatch.evaluate.images import encode, list_images

QUALITY = 95     # of JPEG
SHEET_IMAGES = 16
SHEET_SIDE = 256  # px, longest side of a picture on the sheet
GAP = 4          # px between pictures
_SHEET = "sheet.jpg"


class Artifacts:
    """Writes eval_generated_000.jpg, eval_comparison_000.jpg, eval_prompt_000.txt, … and sheet.jpg into a directory.

    Pictures are written as they come, by whichever worker has them, and the sheet at the end from what was written.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep
        if keep > 0:
            directory.mkdir(exist_ok=True)

    @property
    def path(self) -> Path | None:
        """The directory, or None when nothing is kept."""
        return self.directory if self._keep > 0 else None

    def wanted(self, start: int) -> bool:
        """Is any image from index `start` on to be kept?"""
        return start < self._keep

    def add(self, start: int, images: Tensor, prompts: tuple[str, ...], originals: Tensor | None) -> None:
        """uint8 (n, 3, H, W) with indices from `start` on; `originals` alike, or None. Raises OSError."""
        for offset in range(min(len(images), self._keep - start)):
            index = start + offset
            picture = encode(images[offset])
            picture.save(self.directory / f"eval_generated_{index:03d}.jpg", quality=QUALITY)
            if prompts[offset]:
                (self.directory / f"eval_prompt_{index:03d}.txt").write_text(f"{prompts[offset]}\n", encoding="utf-8")
            if originals is not None:
                pair = _grid([encode(originals[offset]), picture], columns=2)
                pair.save(self.directory / f"eval_comparison_{index:03d}.jpg", quality=QUALITY)

    def finish(self) -> None:
        """Writes the contact sheet. Raises OSError."""
        if self.path is None:
            return
        kept = [p for p in list_images(self.directory) if p.name.startswith("eval_generated_")][:SHEET_IMAGES]
        small = [_thumbnail(path) for path in kept]
        if small:
            _grid(small, math.ceil(math.sqrt(len(small)))).save(self.directory / _SHEET, quality=QUALITY)


def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SHEET_SIDE, SHEET_SIDE))
    return small


def _grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    width, height = (max(side) for side in zip(*(p.size for p in pictures), strict=True))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return sheet
