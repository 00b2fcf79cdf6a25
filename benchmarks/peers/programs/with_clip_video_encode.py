"""clip-video-encode, called as its README does, with less shared memory than its 4 GB. Argument: the job."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from clip_video_encode import clip_video_encode

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    output = Path(job["output"], "npy")
    output.mkdir(parents=True, exist_ok=True)
    clip_video_encode(
        job["clips"],
        str(output),
        take_every_nth=job["every"],
        frame_memory_size=1,
        oc_model_name="ViT-B-32",
        pretrained=job["weights"],
    )
    found = [np.load(output / f"{place}.npy") for place in range(len(job["clips"]))]
    np.save(Path(job["output"], "embeddings.npy"), np.stack(found).astype(np.float32))
