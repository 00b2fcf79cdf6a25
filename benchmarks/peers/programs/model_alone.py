"""Bound of every extraction: the image tower on as many frames, in batches of 32. Argument: the job."""

import json
import sys
from pathlib import Path

import open_clip
import torch

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(job["threads"])
model = open_clip.create_model("ViT-B-32", pretrained=job["weights"]).eval()
frames = len(job["clips"]) * len(job["frames"])
pixels = torch.zeros(32, 3, 224, 224)
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=job["bfloat16"]):
    for _ in range(frames // len(pixels)):
        model.encode_image(pixels)
