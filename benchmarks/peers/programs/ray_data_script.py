"""The plain script as a Ray Data pipeline: decode in tasks, encode in an actor. Argument: the job."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def decode(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A video's frames, each a row, as pixels of the model."""
    import decord
    import open_clip
    from PIL import Image

    preprocess = open_clip.image_transform(224, is_train=False)
    frames = decord.VideoReader(row["path"], num_threads=1).get_batch(job["frames"]).asnumpy()
    return [
        {"path": row["path"], "place": place, "pixels": preprocess(Image.fromarray(frame)).numpy()}
        for place, frame in enumerate(frames)
    ]


class Encode:
    """The image tower, loaded once."""

    def __init__(self) -> None:
        import open_clip
        import torch

        torch.set_num_threads(job["threads"])
        self.model = open_clip.create_model("ViT-B-32", pretrained=job["weights"]).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embeddings of some frames."""
        import torch

        with torch.inference_mode():
            embedding = self.model.encode_image(torch.from_numpy(batch["pixels"])).numpy()
        return {"path": batch["path"], "place": batch["place"], "embedding": embedding}


ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
rows = (
    ray.data.from_items([{"path": path} for path in job["clips"]])
    .flat_map(decode)
    .map_batches(Encode, batch_size=32, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1)
    .take_all()
)
ray.shutdown()
place_of = {path: place for place, path in enumerate(job["clips"])}
embeddings = np.zeros((len(job["clips"]), len(job["frames"]), 512), np.float32)
for row in rows:
    embeddings[place_of[row["path"]], row["place"]] = row["embedding"]
np.save(Path(job["output"], "embeddings.npy"), embeddings)
