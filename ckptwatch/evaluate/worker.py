"""The worker process: `python -m ckptwatch.evaluate.worker --device cuda:0 --up-fd N [--threads N]`.

Job lines come in on standard input; Ready, Progress, Result and Failed go out on descriptor N, which no child inherits
and no print can reach. Standard output and error belong to the log of the job at hand. End of input: exit 0. It yields
to the training process wherever they share a machine (nice, idle I/O), and dies with the thread that started it.
"""

import argparse
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import psutil

from ckptwatch.evaluate.failures import failure_of
from ckptwatch.workers.wire import LONGEST_LINE, Document, Failed, Job, Progress, Ready, WireError, decode, encode

if TYPE_CHECKING:
    from ckptwatch.evaluate.engine import Engine

PR_SET_PDEATHSIG = 1
NICE = 10
NO_DEVICE = 3  # exit status
_PARENT = os.getppid()  # as early as can be, to notice its death before the kernel is asked to tell


class DaemonGone(BaseException):
    """Nobody reads the results any more. Not an Exception, so that nothing mistakes it for a failed evaluation."""


class Uplink:
    """Where documents to the daemon go; each is one write, so that a crash cannot leave half a line behind another."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    def send(self, document: Document) -> None:
        """Raises DaemonGone."""
        rest = memoryview(encode(document))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest):]
        except BrokenPipeError as error:
            raise DaemonGone from error


def main(argv: list[str] | None = None) -> int:
    """Runs until standard input ends. Exit status 0; 3 when the device cannot be used."""
    arguments = _arguments(argv)
    _settle_down()
    jobs = _take_standard_input()
    uplink = Uplink(arguments.up_fd)
    try:
        engine = _engine(arguments.device, arguments.threads)
    except Exception as error:
        print(f"cannot use device {arguments.device}: {error}", file=sys.stderr, flush=True)
        return NO_DEVICE
    with suppress(DaemonGone):
        uplink.send(Ready(device=arguments.device, pid=os.getpid()))
        for job in _jobs(jobs):
            uplink.send(_run(engine, job, uplink))
    gc.unfreeze()  # or the libraries complain of leaks
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.evaluate.worker", description=__doc__)
    parser.add_argument("--device", required=True, help="cpu, cuda:0, …")
    parser.add_argument("--up-fd", type=int, required=True, help="descriptor for answers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0: its own choice")
    return parser.parse_args(argv)


def _settle_down() -> None:
    """Dies with the parent, yields to everybody, leaves Ctrl-C to the daemon, leaves a trace when it crashes."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != _PARENT:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(file=2)
    with suppress(OSError):
        os.nice(NICE)
    with suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # lines must survive an abort


def _take_standard_input() -> BinaryIO:
    """The jobs' stream; descriptor 0 itself becomes /dev/null, so that no sampler reads our jobs."""
    private = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return os.fdopen(private, "rb")


def _engine(device: str, threads: int) -> "Engine":
    """Imports torch, and makes sure of the device by allocating on it. Raises whatever torch does."""
    import torch

    from ckptwatch.evaluate.engine import Engine

    if threads > 0:
        torch.set_num_threads(threads)
    # TF32 is on by default for convolutions and changes features on Ampere and newer.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.zeros(1, device=torch.device(device))
    gc.freeze()  # what the imports made will never be garbage; looking through it takes 0.2 s a time
    return Engine(device)


def _jobs(stream: BinaryIO) -> Iterator[Job]:
    """Jobs until the end of input; anything else on it is logged and left out."""
    while line := stream.readline(LONGEST_LINE + 1):
        try:
            document = decode(line)
        except WireError as error:
            print(f"ignored: {error}", file=sys.stderr, flush=True)
            continue
        if isinstance(document, Job):
            yield document
        else:
            print(f"ignored: a {type(document).__name__} is no job", file=sys.stderr, flush=True)


def _run(engine: "Engine", job: Job, uplink: Uplink) -> Document:
    """The Result or Failed of a job; the worker lives on after any error."""
    def send(progress: Progress) -> None:
        uplink.send(progress)

    try:
        with _output_to(job.log):
            try:
                return engine.evaluate(job, send)
            except DaemonGone:
                raise
            except BaseException as error:
                traceback.print_exception(error)
                failure = failure_of(error)
                traceback.clear_frames(error.__traceback__)  # they hold tensors
    except OSError as error:
        failure = failure_of(error)
    from ckptwatch.evaluate.engine import release_memory

    release_memory()  # again, now that no traceback holds anything
    return Failed(job=job.job, failure=failure)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Descriptors 1 and 2, and with them every print, child and fault handler, append to `log`. Raises OSError."""
    opened = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    before = os.dup(1), os.dup(2)
    _flush()
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.close(opened)
    try:
        yield
    finally:
        _flush()
        os.dup2(before[0], 1)
        os.dup2(before[1], 2)
        for saved in before:
            os.close(saved)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


if __name__ == "__main__":
    sys.exit(main())
