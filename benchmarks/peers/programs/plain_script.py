"""decord + open_clip, as one writes it by hand: a video at a time, its frame embeddings. Argument: the job."""

import json
import sys
from pathlib import Path

import decord
import numpy as np
import open_clip
import torch
from PIL import Image

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(job["threads"])
model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=job["weights"])
model.eval()
embeddings = []
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=job.get("bfloat16", False)):
    for path in job["clips"]:
        frames = decord.VideoReader(path, num_threads=1).get_batch(job["frames"]).asnumpy()
        pixels = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
        embeddings.append(model.encode_image(pixels).float().numpy())
np.save(Path(job["output"], "embeddings.npy"), np.stack(embeddings))
