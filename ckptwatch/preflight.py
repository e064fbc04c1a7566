"""What a recipe needs of this machine and does not find there: programs, modules, statistics, weights by their path.

Files that are read for a recipe's digest are found missing there (ckptwatch.recipes); these are the others. Nothing is
imported or run.
"""

import shutil
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ckptwatch.core.placeholders import COMMAND, EVALUATION, examine_pattern
from ckptwatch.formats.reading import open_regular
from ckptwatch.model import EvaluationCommand, Recipe

_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
_ZIP, _PICKLE, _ARRAY = b"PK", b"\x80", b"\x93NUMPY"
# Which metrics rest on a torch-fidelity extractor, which features.module may register.
_EXTRACTED = frozenset({"fid", "kid", "inception_score", "precision", "recall"})


def lacking_here(recipe: Recipe, directory: Path) -> Iterator[str]:
    """What is missing, in words. `directory` is that of the configuration, in which samplers and workers run."""
    if recipe.sampler.command and (problem := _program(recipe.sampler.command[0], directory)):
        yield f"sampler.command: {problem}"
    if recipe.command is not None:
        yield from (f"command: {problem}" for problem in _lacking_of_command(recipe.command, directory))
    if recipe.kind != "images":
        return
    names = {m.name for m in recipe.metrics if not m.function}
    functions = {"sampler.python": recipe.sampler.factory}
    functions |= {f"metrics, {m.name}": m.function for m in recipe.metrics}
    if names & _EXTRACTED:
        functions["networks.features.module"] = recipe.networks.features_module
    invalidate_caches()
    for key, function in functions.items():
        module = function.partition(":")[0]
        if module and not is_module(module, directory):
            yield f"{key}: no module {module}, neither in {directory} nor installed; mind PYTHONPATH of the daemon"
    if recipe.reference.stats is not None and (problem := _statistics(recipe.reference.stats)):
        yield f"reference statistics {recipe.reference.stats}: {problem}"
    for metric, key, given in (("clip_score", "clip", recipe.networks.clip_pretrained),
                               ("cmmd", "cmmd", recipe.networks.cmmd_pretrained)):
        # A file that was there when the configuration was read has an absolute path.
        if metric in names and not Path(given).is_absolute() and ("/" in given or given.lower().endswith(_WEIGHTS)):
            yield f"networks.{key}.pretrained {directory / Path(given).expanduser()}: no such file"


def is_module(name: str, directory: Path) -> bool:
    """Would a worker that runs in `directory` find the module? Neither it nor its packages are imported."""
    # Ours begins with the directory of the script or the current one; a worker's with the one it runs in.
    path = [str(directory), *sys.path[0 if sys.flags.safe_path else 1:]]
    top, *inner = name.split(".")
    spec = _found(top, path)
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return name in sys.modules  # os.path lies in no package
        # By its last name alone: under its full one, a namespace package would want its parent imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec is not None and spec.origin is not None  # a directory without __init__.py has no functions


def _found(top: str, path: list[str]) -> ModuleSpec | None:
    """Built-in modules and packages installed as links to their source have finders of their own."""
    if (spec := PathFinder.find_spec(top, path)) is not None and spec.origin is not None:
        return spec
    for finder in sys.meta_path:
        if finder is not PathFinder and (other := finder.find_spec(top, None)) is not None:
            return other
    return spec


def _lacking_of_command(command: EvaluationCommand, directory: Path) -> Iterator[str]:
    words = [word for part in command.argv for word in ([part] if isinstance(part, str) else part)]
    if problem := _program(words[0], directory):
        yield problem
    # `python eval.py`: what python would only say once the first checkpoint is there.
    if len(words) > 1 and Path(words[0]).name.startswith("python") and words[1].endswith(".py"):
        problem, asked = examine_pattern(words[1], EVALUATION)
        if not problem and not asked and not (script := directory / words[1].format()).is_file():
            yield f"no file {script}"


def _program(word: str, directory: Path) -> str:
    """A command with a slash in it starts at the directory in which it is run, any other is looked for in PATH."""
    problem, asked = examine_pattern(word, {**COMMAND, **EVALUATION})
    if problem or asked:
        return ""  # which program it is depends on the checkpoint
    word = word.format()
    if "/" not in word:
        return "" if shutil.which(word) else f"no program {word!r} in PATH; give its full path"
    program = directory / word
    if shutil.which(program):
        return ""
    return f"{program} is no program that can be run: chmod +x it" if program.is_file() else f"no program {program}"


def _statistics(path: Path) -> str:
    """What is wrong with the first bytes of a file; one that cannot be read is told of elsewhere."""
    try:
        with open_regular(path) as file:
            begin = file.read(len(_ARRAY))
    except OSError:
        return ""
    if begin.startswith((_ZIP, _PICKLE)):
        return ""
    kind = "an empty file" if not begin else "a single array" if begin == _ARRAY else "some other file"
    return f"neither an npz file nor a pickle, but {kind}"
