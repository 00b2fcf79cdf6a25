"""A decoder that really does what its file is called: hang, crash, eat memory. For decode workers in tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.decoders import pyav
from stages.decoders.base import DeclinedError
from stages.decoders.pyav import OpenVideo

GIANT_BYTES = 1 << 30
HEAVY = {"torch", "h5py", "faiss", "open_clip", "sqlite3", "click", "rich", "ray"}

num_fetched = 0


class OddDecoder:
    def version(self) -> str:
        return "odd 1"

    def fetch(self, video: OpenVideo, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        global num_fetched
        num_fetched += 1
        path = Path(os.readlink(video.path))
        what = path.stem.split("_")[0]
        if what == "hang":
            ctypes.PyDLL(None).pause()  # in C, with the interpreter's lock: nothing in this process can go on
        elif what == "slow":
            time.sleep(0.5)
        elif what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "exit":
            os._exit(7)
        elif what == "throw":
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        elif what == "hungry":
            np.ones(GIANT_BYTES, np.uint8)
        elif what == "bug":
            raise ZeroDivisionError("a bug in a decoder")
        elif what == "fragile" and num_fetched > 1:
            os.abort()
        elif what == "grow":
            with path.open("ab") as file:
                file.write(b"more")
        elif what == "shrink":
            os.truncate(path, 100)
        elif what == "modules":
            raise DeclinedError("heavy: " + ",".join(sorted(HEAVY & set(sys.modules))))
        elif what == "process":
            raise DeclinedError(f"process {os.getpid()}")
        return pyav.DECODER.fetch(video, frames)


DECODER = OddDecoder()
