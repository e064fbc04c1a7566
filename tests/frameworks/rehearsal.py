"""The training's side of a rehearsal: a script trains in one directory after the other and tells a listener what it saves.

    python train_x.py OUT_DIR...

Each directory gets a process of its own, forked after the imports. With nobody listening on standard input it just trains;
the last line is a JSON document either way. A listener answers each line (see `dialogue.py`) and so decides when it goes on.
"""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu", KERAS_BACKEND="torch",
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", DISABLE_TELEMETRY="YES", WANDB_MODE="disabled",
    YOLO_OFFLINE="true", YOLO_VERBOSE="false", PYTHONHASHSEED="0", TOKENIZERS_PARALLELISM="false", GLOG_minloglevel="3",
)
for _name in ("HF_HOME", "YOLO_CONFIG_DIR", "MPLCONFIGDIR"):  # nothing is to be left in a person's home
    os.environ[_name] = str(Path(*sys.argv[1:2]).absolute().parent / "home")

# Changes of names that Python code announces before it makes them. What C++ and Rust do is not among them.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.move", "shutil.rmtree"}


class Rehearsal:
    """One training in one directory."""

    def __init__(self, out: Path, channel: "Channel") -> None:
        self.out = out
        self._channel = channel
        self._saved: dict[Path, dict[str, Any]] = {}
        self._looking = False
        self._announcing = False

    def saved(self, path: Path | str, format_: str, **facts: Any) -> None:
        """The training has finished writing this checkpoint, or a new version of it. The facts that it knows of it are among
        `step`, `epoch` and `metrics`; None says that there is none."""
        self._saved[Path(path)] = {"format": format_, **facts}

    def forget(self, path: Path) -> None:
        """The name is no checkpoint of its own any more, but another one's second name."""
        del self._saved[path]

    def pause(self) -> None:
        """Nothing is being written now: these are the checkpoints on disk. Returns when the listener has seen them."""
        present = {str(p.relative_to(self.out)): facts for p, facts in self._saved.items() if p.exists()}
        self._channel.ask(type="pause", out=str(self.out), present=present)

    def hold(self, paths: Iterable[Path]) -> None:
        """These are half-written, and stay so until the listener has taken notice."""
        self._channel.ask(type="hold", out=str(self.out), paths=[str(p.relative_to(self.out)) for p in paths])

    def look(self, path: Path) -> None:
        """Something of this path has been written, and more will follow."""
        if self._announcing:
            self._channel.ask(type="look", out=str(self.out), event="write", path=str(path))

    def announce_changes(self) -> None:
        """From now on ask the listener to look before each file that this process opens for writing, moves or removes."""
        self._announcing = True
        sys.addaudithook(self._on_audit)

    def fall_silent(self) -> None:
        """This process is one of several of the training, and not the one that speaks."""
        self._announcing, self._looking = False, True

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._looking or not (event == "open" or event in _CHANGES) or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = os.fsdecode(arguments[0])
        self._looking = True
        try:
            if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # as rmtree does
                path = str(Path(f"/proc/self/fd/{arguments[1]}").readlink() / path)
            if path.startswith(str(self.out)):
                self._channel.ask(type="look", out=str(self.out), event=event, path=path)
        finally:
            self._looking = False


class Channel:
    """Lines of JSON to the listener on the original standard output, answers from standard input.

    An answer may ask for a checkpoint to be loaded; the next answer comes after that.
    """

    def __init__(self, load: Callable[[Path], Mapping[str, Any]]) -> None:
        self._load = load
        self._up = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print must not get between the lines
        self._down = None if sys.stdin.isatty() else sys.stdin

    def ask(self, **document: Any) -> dict[str, Any]:
        """The listener's last answer; {} if nobody listens."""
        answer = self._exchange(document)
        while path := answer.get("load"):
            try:
                answer = self._exchange({"type": "loaded", "digest": digest(self._load(Path(path)))})
            except Exception as error:
                answer = self._exchange({"type": "loaded", "error": f"{type(error).__name__}: {error}"})
        return answer

    def _exchange(self, document: Mapping[str, Any]) -> dict[str, Any]:
        if self._down is None and document["type"] != "result":
            return {}
        print(json.dumps(document, sort_keys=True), file=self._up, flush=True)
        line = self._down.readline() if self._down is not None else ""
        if not line:
            self._down = None
            return {}
        return dict(json.loads(line))


def rehearse(train: Callable[[Rehearsal], Mapping[str, Any]], load: Callable[[Path], Mapping[str, Any]]) -> None:
    """Train in each directory of the command line. `train` returns what the training ended with; `load` reads a checkpoint
    back with the library that wrote it, and returns its arrays by name, raising if any is missing."""
    channel = Channel(load)
    for argument in sys.argv[1:]:
        out = Path(argument).absolute()
        out.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            os._exit(_child(out, channel, train))
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"training in {out} failed: {os.waitstatus_to_exitcode(status)}")


def _child(out: Path, channel: Channel, train: Callable[[Rehearsal], Mapping[str, Any]]) -> int:
    try:
        rehearsal = Rehearsal(out, channel)
        if channel.ask(type="begin", out=str(out)).get("announce"):
            rehearsal.announce_changes()
        ended = train(rehearsal)
        rehearsal.pause()
        channel.ask(type="result", out=str(out), ended=ended)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0


def digest(arrays: Mapping[str, Any]) -> str:
    """Of names and contents. Arrays are of torch, numpy or jax."""
    import numpy

    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        array = numpy.asarray(value.detach() if hasattr(value, "detach") else value)
        sha.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        sha.update(numpy.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
