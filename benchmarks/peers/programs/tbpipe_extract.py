"""tbpipe extract, as a user calls it. Argument: the job."""

import json
import sys
from pathlib import Path

from pipeline.cli import main

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    frames = ["--sampling", "fps", "--fps", str(job["frames_per_second"]), "--frames", str(len(job["frames"]))]
    model = ["--model", "ViT-B-32", "--pretrained", job["weights"], "--device", "cpu"]
    sys.exit(main(["extract", *job["clips"], "--store", str(Path(job["output"], "store")), *frames, *model, "--quiet"]))
