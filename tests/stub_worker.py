"""Stands in for ckptwatch.evaluate.worker: the same protocol, no torch. What a checkpoint holds decides how it behaves.

`quality` is the score; `misbehave` is one of fail, crash, abort, exit, hang, garbage. Of an evaluation that several workers
share, only the part `in_part` does so, or the putting together ("merge").
"""

import argparse
import ctypes
import json
import os
import pickle
import signal
import sys
import zipfile
from pathlib import Path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")
    parser.add_argument("--up-fd", type=int)
    parser.add_argument("--threads")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    os.set_inheritable(arguments.up_fd, False)

    def send(**document):
        os.write(arguments.up_fd, json.dumps(document).encode() + b"\n")

    send(type="ready", device=arguments.device, pid=os.getpid())
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer(job, send)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            fail(job, send, "checkpoint", f"cannot load: {error}")


def answer(job, send):
    with zipfile.ZipFile(job["checkpoint"]) as archive:
        content = pickle.loads(archive.read("archive/data.pkl"))
    send(type="progress", job=job["job"], stage="sampling", done=1, total=2)
    if job["parts"] > 1:
        place = "merge" if job["merge"] else job["part"]
        if content.get("in_part") == place:
            misbehave(content.get("misbehave"), job, send)
        if not job["merge"]:
            Path(job["work_dir"], f"part-{job['part']}").write_text(job["job"])
            return send(type="partial", job=job["job"], part=job["part"])
        for part in range(job["parts"]):
            if Path(job["work_dir"], f"part-{part}").read_text() != job["job"]:
                return fail(job, send, "internal", "a part of another attempt")
    else:
        misbehave(content.get("misbehave"), job, send)
    if "quality" not in content:
        return fail(job, send, "metric", "it has no quality")
    scores = [{"metric": m["name"], "value": content["quality"], "mode": m["mode"], "n": 4}
              for m in job["recipe"]["metrics"]]
    return send(type="result", job=job["job"], scores=scores, seconds=0.1)


def misbehave(how, job, send):
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        sys.exit(0)
    elif how == "hang":
        signal.pause()
    elif how == "garbage":
        send(type="result", job=job["job"], scores=[{"metric": "quality", "value": "much"}], seconds=0.1)
        signal.pause()


def fail(job, send, kind, message):
    send(type="failed", job=job["job"], failure={"kind": kind, "message": message, "hint": "", "retryable": True})


if __name__ == "__main__":
    main()
