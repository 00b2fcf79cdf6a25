"""Frames as JPEG files, then clip-retrieval's inference on that folder. Argument: the job."""

import json
import sys
from pathlib import Path

import decord
import numpy as np
import pyarrow.parquet as parquet
import torch
from clip_retrieval import clip_inference
from PIL import Image

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    pictures = Path(job["output"], "pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    for clip, path in enumerate(job["clips"]):
        frames = decord.VideoReader(path, num_threads=1).get_batch(job["frames"]).asnumpy()
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(pictures / f"{clip:05d}_{place:02d}.jpg", quality=95, subsampling=0)
    folder = Path(job["output"], "clip-retrieval")
    clip_inference(
        str(pictures),
        str(folder),
        batch_size=32,
        num_prepro_workers=1,
        enable_text=False,
        clip_model=f"open_clip:ViT-B-32/{job['weights']}",
    )
    names, parts = [], []
    for part in sorted(folder.glob("img_emb/*.npy")):
        parts.append(np.load(part))
        table = parquet.read_table(
            folder / "metadata" / part.name.replace("img_emb", "metadata").replace("npy", "parquet")
        )
        names += [Path(name).stem for name in table["image_path"].to_pylist()]
    order = np.argsort(names)
    embeddings = np.concatenate(parts).astype(np.float32)[order]
    np.save(Path(job["output"], "embeddings.npy"), embeddings.reshape(len(job["clips"]), len(job["frames"]), -1))
