"""Runs inside a sandbox, before the program: waits for its job, writes its files, starts it, brings files back.

Used as text, never imported by glmcore: it needs nothing but the standard library. Its arguments are two descriptors:
one gives the job, a line of JSON and then the files, the other takes the result likewise. Neither is passed on.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys


def main() -> None:
    """Do one job."""
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: the program cannot open our descriptors through /proc
    with os.fdopen(int(sys.argv[1]), "rb") as source:
        job = json.loads(source.readline())
        for name, size in job["files"]:
            path = os.path.join("/work", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(source.read(size))
    for name, soft, hard in job["rlimits"]:
        resource.setrlimit(getattr(resource, name), (soft, hard))
    sink = os.fdopen(int(sys.argv[2]), "wb")
    sink.write(b"started\n")
    sink.flush()
    try:
        code = subprocess.Popen(job["argv"], cwd="/work", close_fds=True).wait()
    except OSError as error:
        print(f"{job['argv'][0]}: {error.strerror}", file=sys.stderr)
        code = 127
    files = []
    left = job["output_bytes"]
    for name in job["wanted"]:
        data = read(os.path.join("/work", name), left)
        if data is not None:
            files.append((name, data))
            left -= len(data)
    with sink:
        sink.write(json.dumps({"code": code, "files": [(name, len(data)) for name, data in files]}).encode() + b"\n")
        for _, data in files:
            sink.write(data)


def read(path: str, most: int) -> "bytes | None":
    """Contents of a regular file of at most `most` bytes; no links, which could lead anywhere."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(file, "rb") as opened:
        if not os.path.isfile(path) or os.fstat(file).st_size > most:
            return None
        return opened.read(most)


main()
