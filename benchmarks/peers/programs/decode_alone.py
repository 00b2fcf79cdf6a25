"""Bound of every extraction: the frames decoded by decord, and nothing else. Argument: the job."""

import json
import sys
from pathlib import Path

import decord

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
for path in job["clips"]:
    reader = decord.VideoReader(path, num_threads=1)
    frames = reader.get_batch(job["frames"]).asnumpy()
    assert len(frames) == len(job["frames"]), path
