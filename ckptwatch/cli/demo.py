"""demo: a real tiny training job, watched, ranked and pruned before your eyes."""

from pathlib import Path
from typing import Annotated

import typer

from ckptwatch.cli.context import AsciiOption


def demo(
    directory: Annotated[Path | None, typer.Option("--dir", help="Where everything stays; default: a temporary "
                                                   "directory.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use the standard Inception, AlexNet and ViT-B-32 weights "
                                             "instead of the demo's own small networks.")] = False,
    ascii_only: AsciiOption = False,
) -> None:
    """Train two small generators for about a minute and watch ckptwatch work beside them."""
    from ckptwatch.demo.show import run_demo

    run_demo(directory, pretrained=pretrained, ascii_only=ascii_only)
