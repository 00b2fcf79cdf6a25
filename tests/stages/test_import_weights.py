from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from index_store.errors import FingerprintError, InputError, UsageError
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from stages.import_weights import SOURCES, convert, import_weights
from stages.models import MODELS, load_model
from stages.models.architecture import resolve
from stages.rerankers import CandidateBatch, QueryBatch, Reranker
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipReranker, Clip4ClipTightHead
from stages.rerankers.eercf import EercfHead, EercfReranker
from stages.rerankers.head_weights import HEADS, HeadWeights, method_of, open_reranker
from stages.rerankers.official_names import official_head
from stages.rerankers.selection import PredictorA
from stages.rerankers.ts2net import Ts2NetHead, Ts2NetReranker
from stages.rerankers.ucofia import UcofiaHead, UcofiaReranker
from stages.rerankers.xclip import XClipHead, XClipReranker
from tests.conftest import SHARED
from tests.stages.checkpoints import (
    CONFIGS,
    FAMILY,
    FRAMES,
    LAYERS,
    POSITIONS,
    QUICK_TINY,
    WORDS,
    block,
    clip_part,
    head,
    on_meta,
    random_tensors,
    selector,
    tiny_checkpoint,
    tiny_clip,
    unused,
)
from tests.stages.model_files import TINY_CLIP_VIP, clip_vip_state, reference_model, save_folder

FILE = Path("checkpoint.bin")
D = QUICK_TINY["embed_dim"]
TEMPORAL = {"width": D, "num_layers": LAYERS, "num_positions": POSITIONS}


def folder_for(source: str, tmp_path: Path) -> Path:
    """A model folder that says the sizes of the small checkpoints; its own weights are others."""
    folder = tmp_path / "model"
    if folder.exists():
        return folder
    return save_folder(folder, reference_model(seed=99), CONFIGS.get(source, QUICK_TINY))


def imported(source: str, state: Mapping[str, Tensor], tmp_path: Path) -> tuple[Path, Path]:
    """The two files of a checkpoint, which lie in the model folder."""
    folder = folder_for(source, tmp_path)
    torch.save(dict(state), tmp_path / "pytorch_model.bin.4")
    output = folder / "imported.safetensors"
    found = import_weights(source, tmp_path / "pytorch_model.bin.4", output, f"local-dir:{folder}")
    assert found.weights == output
    return output, found.head or output


def candidates(seed: int = 0) -> tuple[QueryBatch, CandidateBatch]:
    """3 queries and 4 videos, some of them short."""
    make = random_tensors(seed)
    queries = QueryBatch(make(3, D), make(3, WORDS, D), torch.arange(WORDS) < torch.tensor([[8], [5], [2]]))
    videos = CandidateBatch(
        tokens=make(4, FRAMES, 17, D).half(),
        scales=None,
        frame_mask=torch.arange(FRAMES) < torch.tensor([[6], [4], [6], [1]]),
        index=torch.tensor([[0, 1, 2, 3], [3, 2, 1, -1], [0, 2, -1, -1]]),
        broad=make(3, 4),
    )
    return queries, videos


DIRECT: dict[str, Callable[[], Reranker]] = {
    "clip4clip": lambda: Clip4ClipReranker(Clip4ClipHead(**TEMPORAL)),
    "xclip": lambda: XClipReranker(XClipHead(**TEMPORAL, num_words=WORDS, num_frames=FRAMES)),
    "eercf": lambda: EercfReranker(EercfHead(**TEMPORAL, num_frames=FRAMES)),
    "ts2net": lambda: Ts2NetReranker(Ts2NetHead(**TEMPORAL)),
    "ucofia": lambda: UcofiaReranker(
        UcofiaHead(**TEMPORAL, num_words=WORDS, num_frames=FRAMES, predictor=PredictorA(D)).eval()
    ),
}
"""The head of each system, made by its constructor."""


@pytest.mark.slow
@pytest.mark.parametrize("source", DIRECT)
def test_imported_weights_score_like_the_same_numbers_set_directly(source: str, tmp_path: Path) -> None:
    state = tiny_checkpoint(source)
    _, path = imported(source, state, tmp_path)
    weights = HeadWeights.load(path)
    direct: Any = DIRECT[source]()
    names = direct.scorer.state_dict()
    direct.scorer.load_state_dict(
        {name: state["clip.logit_scale" if name == "logit_scale" else name] for name in names}
    )
    queries, videos = candidates()
    reranker = weights.reranker(path, torch.device("cpu"))
    assert reranker.name == weights.method == method_of(path)
    assert torch.equal(reranker.rank(queries, videos), direct.rank(queries, videos))
    assert weights.sizes["width"] == D
    assert weights.sizes["layers"] == LAYERS


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in imported("ucofia", tiny_checkpoint("ucofia"), tmp_path)]
    assert [path.read_bytes() for path in imported("ucofia", tiny_checkpoint("ucofia"), tmp_path)] == first


@pytest.mark.slow
@pytest.mark.parametrize("source", [*FAMILY, "openai-clip"])
def test_the_image_text_model_is_the_one_of_the_checkpoint(source: str, tmp_path: Path) -> None:
    clip, _ = imported(source, tiny_checkpoint(source), tmp_path)
    suffix = "-tokenshift" if source in ("ts2net", "ucofia") else ""
    loaded = load_model(f"local-dir:{clip.parent}{suffix}", str(clip), device="cpu", dtype="float32")
    reference = CLIP(**QUICK_TINY).eval()
    reference.load_state_dict(tiny_clip())
    plain = load_model(f"local-dir:{clip.parent}", str(clip), device="cpu", dtype="float32")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(plain.encode_frames(pixels)[:, 0], reference.encode_image(pixels))
        ids = plain.query_side()[1](["a dog"])
        torch.testing.assert_close(plain.query_side()[0].features(ids)[0], reference.encode_text(ids))
    assert loaded.sees_videos == bool(suffix)
    assert plain.logit_scale == pytest.approx(reference.logit_scale.exp().item())


def test_clip_vip_comes_out_as_the_same_numbers(tmp_path: Path) -> None:
    clip, _ = imported("clip-vip", tiny_checkpoint("clip-vip"), tmp_path)
    save_file(clip_vip_state(3), tmp_path / "direct.safetensors")
    videos = torch.rand(2, 6, 3, 32, 32)
    mask = torch.ones(2, 6, dtype=torch.bool)
    one, other = (
        load_model(f"local-dir:{clip.parent}", str(path), device="cpu", dtype="float32")
        for path in (clip, tmp_path / "direct.safetensors")
    )
    assert torch.equal(one.encode_videos(videos, mask), other.encode_videos(videos, mask))
    assert torch.equal(one.encode_texts(["a dog"]).sentence, other.encode_texts(["a dog"]).sentence)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "total"), [("clip4clip", 351), ("xclip", 359), ("eercf", 353), ("ucofia", 369), ("ts2net", 366)]
)
def test_checkpoints_of_the_published_sizes_fit(source: str, total: int) -> None:
    """On the meta device: nothing is allocated."""
    known = resolve("ViT-B-32-quickgelu", "", MODELS)
    with torch.device("meta"):
        clip = CLIP(embed_dim=512, vision_cfg=dict(known.vision), text_cfg=dict(known.text)).state_dict()
    state = (
        clip_part(source, clip) | head(source, on_meta, 512, 32, 12, 4, 77) | unused(source, on_meta, 512, 32, 12, 768)
    )
    assert len(state) == total
    found = convert(source, state, FILE)
    assert found.model == "ViT-B-32-quickgelu" + ("-tokenshift" if source in ("ts2net", "ucofia") else "")
    assert len(found.clip) == 302
    assert found.head is not None
    assert found.head.sizes["layers"] == 4
    if source in ("xclip", "ucofia"):
        assert (found.head.sizes["words"], found.head.sizes["frames"]) == (32, 12)


def test_the_names_in_the_golden_files_are_the_names_that_are_read() -> None:
    if not (SHARED / "golden").is_dir():
        pytest.skip("numbers of the authors' code not found")
    for source in ("xclip", "eercf", "ts2net", "ucofia"):
        with np.load(SHARED / "golden" / f"{source}.npz", allow_pickle=False) as file:
            names = [name[2:] for name in file.files if name.startswith("w.") and not name.startswith("w.clip.")]
            state = {name: torch.from_numpy(file[f"w.{name}"]) for name in names if name[0].islower()}
            width = int(file["cfg.D"])
        try:
            found = official_head(source, state, width, FILE)
        except InputError as error:
            pytest.fail(f"{source}: {error}")
        wrong = {name: tuple(state[name].shape) for name in found.shapes if name in state}
        assert wrong == {name: shape for name, shape in found.shapes.items() if name in state}
        assert [name for name in found.shapes if name not in state] == []


def broken(source: str, name: str, change: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
    """A checkpoint with one tensor changed or, for None, without it."""
    state = tiny_checkpoint(source)
    tensor = state.pop(name)
    return state if change is None else {**state, name: change(tensor)}


def refusal(source: str, state: Mapping[str, Tensor], tmp_path: Path) -> str:
    with pytest.raises(InputError) as error:
        convert(source, state, FILE, f"local-dir:{folder_for(source, tmp_path)}")
    assert error.value.exit_code == 17
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("clip4clip", "clip.visual.proj"),
        ("clip4clip", "clip.logit_scale"),
        ("clip4clip", "transformerClip.resblocks.0.mlp.c_fc.bias"),
        ("xclip", "frame_mat_weight2"),
        ("eercf", "global_mat_weight"),
        ("ts2net", "visual_token_selector.score_predictor.out_conv.2.weight"),
        ("ts2net", "clip.visual.transformer.resblocks.1.attn.net.in_proj_weight"),
        ("ucofia", "clip.visual.transformer.resblocks.0.attn.net.out_proj.bias"),
        ("ucofia", "pixel_mat_weight2"),
        ("openai-clip", "positional_embedding"),
        ("clip-vip", "clipmodel.vision_model.embeddings.added_cls"),
        ("clip-vip", "clipmodel.text_model.encoder.layers.1.self_attn.k_proj.bias"),
        ("clip-vip", "clipmodel.vision_model.encoder.layers.0.mlp.fc2.weight"),
        ("clip-vip", "clipmodel.text_model.final_layer_norm.weight"),
        ("clip-vip", "clipmodel.text_model.embeddings.position_embedding.weight"),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(source: str, name: str, tmp_path: Path) -> None:
    assert f"no tensor {name}" in refusal(source, broken(source, name, None), tmp_path)
    longer = broken(source, name, lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None])
    message = refusal(source, longer, tmp_path)
    letters = name.replace("k_proj", "{q,k,v}_proj")
    assert f"tensor {name} is" in message or f"tensor {letters} is" in message


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_tensor_that_nobody_knows_is_named(source: str, tmp_path: Path) -> None:
    prefix = {"clip-vip": "clipmodel.", "openai-clip": ""}.get(source, "clip.")
    for name in (f"{prefix}visual.extra", "extra.weight"):
        assert name in refusal(source, {**tiny_checkpoint(source), name: torch.ones(2)}, tmp_path)


def test_clips_own_weights_never_stand_in_for_those_of_shifted_blocks(tmp_path: Path) -> None:
    state = tiny_checkpoint("ucofia")
    plain = {name.replace(".attn.net.", ".attn."): torch.zeros_like(value) for name, value in state.items()}
    assert "attn.net.in_proj_weight" in refusal("ucofia", plain, tmp_path)
    both = convert("ucofia", {**plain, **state}, FILE, f"local-dir:{folder_for('ucofia', tmp_path)}")
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    assert torch.equal(both.clip[name], state["clip.visual.transformer.resblocks.1.attn.net.in_proj_weight"])


@pytest.mark.parametrize(("kind", "width"), [("A", D // 2), ("B", D)])
def test_the_two_predictors_of_ucofia_are_told_apart_by_shape(kind: str, width: int, tmp_path: Path) -> None:
    found = convert("ucofia", tiny_checkpoint("ucofia", predictor=kind), FILE, f"local-dir:{folder_for('', tmp_path)}")
    assert found.head is not None
    assert found.head.sizes["predictor_width"] == width
    with_b = {**tiny_checkpoint("ts2net"), **selector(random_tensors(0), D, "B")}
    assert "in_conv.1.weight is [24, 48], expected [12, 24]" in refusal("ts2net", with_b, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_checkpoint_of_another_system_says_whose_it_is(source: str, tmp_path: Path) -> None:
    for other in SOURCES:
        if other != source:
            assert f"give --from {source}" in refusal(other, tiny_checkpoint(source), tmp_path)
    assert "its first tensor is fc.weight" in refusal(source, {"fc.weight": torch.ones(1)}, tmp_path)


def test_all_kinds_of_clip4clip_are_known(tmp_path: Path) -> None:
    make = random_tensors(1)
    clip = clip_part("clip4clip", tiny_clip())
    lstm = {f"lstm_visual.weight_{kind}h_l0": make(4 * D, D) for kind in "ih"}
    lstm |= {f"lstm_visual.bias_{kind}h_l0": make(4 * D) for kind in "ih"}
    tight = {
        "cross.embeddings.position_embeddings.weight": make(POSITIONS, D),
        **block(make, "cross.transformer.resblocks.0", D),
        **{f"cross.pooler.ln_pool.{part}": make(D) for part in ("weight", "bias")},
        "cross.pooler.dense.weight": make(D, D),
        "cross.pooler.dense.bias": make(D),
        "similarity_dense.weight": make(1, D),
        "similarity_dense.bias": make(1),
    }
    queries, videos = candidates()
    kinds: dict[str, tuple[dict[str, Tensor], Any]] = {
        "clip4clip": ({}, Clip4ClipHead()),
        "clip4clip ": (lstm, Clip4ClipHead(D, recurrent=True)),
        "clip4clip-tight": (tight, Clip4ClipTightHead(D, 1, num_positions=POSITIONS)),
    }
    for method, (tensors, direct) in kinds.items():
        position = {} if "cross" in str(tensors) else {"frame_position_embeddings.weight": make(POSITIONS, D)}
        _, path = imported("clip4clip", {**clip, **tensors, **position}, tmp_path)
        weights = HeadWeights.load(path)
        assert weights.method == method.strip()
        direct.load_state_dict({**tensors, "logit_scale": clip["clip.logit_scale"]})
        direct.requires_grad_(False)
        found = weights.reranker(path, torch.device("cpu")).rank(queries, videos)
        assert torch.equal(found, Clip4ClipReranker(direct).rank(queries, videos))


class Evil:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin.0"
    if kind == "safetensors":
        save_file(tiny_checkpoint("xclip"), path)
    else:
        torch.save(tiny_checkpoint("xclip"), path, _use_new_zipfile_serialization=kind == "zip")
    for size in (0, 5, 100, path.stat().st_size // 2, path.stat().st_size - 1):
        cut = tmp_path / "cut.bin.0"
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match=str(cut)):
            import_weights("xclip", cut, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.bin"
    for zipped in (True, False):
        state = {**tiny_checkpoint("xclip"), "x": Evil(tmp_path / "made")}
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="nothing else is ever unpickled"):
            import_weights("xclip", path, tmp_path / "out.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evil.bin"]


def test_a_tower_for_3d_patches_is_refused(tmp_path: Path) -> None:
    state = {**tiny_checkpoint("clip4clip"), "clip.visual.conv2.weight": torch.ones(2)}
    assert "--linear_patch 3d" in refusal("clip4clip", state, tmp_path)


def test_unknown_sizes_and_bad_outputs_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown size \(2x64 patches of 8, 2x32\).*--model NAME"):
        convert("xclip", tiny_checkpoint("xclip"), FILE)
    torch.save(tiny_checkpoint("xclip"), tmp_path / "a.safetensors")
    for output in ("a.safetensors", "b.bin"):
        with pytest.raises(UsageError, match="--output"):
            import_weights("xclip", tmp_path / "a.safetensors", tmp_path / output)


def test_weights_know_the_features_that_they_belong_to(tmp_path: Path) -> None:
    clip, path = imported("ts2net", tiny_checkpoint("ts2net"), tmp_path)
    model = load_model(f"local-dir:{clip.parent}-tokenshift", str(clip), device="cpu", dtype="float32", towers="image")
    settings = StoreSettings(model.settings(), SamplingSettings("uniform", FRAMES), TokenSettings("int8", "all"))
    assert open_reranker(path, "ts2-net", settings, model).name == "ts2-net"
    for other in (
        replace(settings, model=replace(settings.model, weights_sha256="0" * 64)),
        replace(settings, model=replace(settings.model, name="local-dir")),
        replace(settings, tokens=TokenSettings("int8", "cls")),
    ):
        with pytest.raises(FingerprintError, match="train on this store"):
            open_reranker(path, "ts2-net", other, model)
    with pytest.raises(UsageError, match="has weights of ts2-net, --method is x-clip"):
        open_reranker(path, "x-clip", settings, model)


def test_heads_of_frames_take_a_store_without_patches(tmp_path: Path) -> None:
    clip, path = imported("xclip", tiny_checkpoint("xclip"), tmp_path)
    model = load_model(f"local-dir:{clip.parent}", str(clip), device="cpu", dtype="float32", towers="image")
    settings = StoreSettings(model.settings(), SamplingSettings("uniform", FRAMES), TokenSettings("float16", "cls"))
    assert open_reranker(path, "x-clip", settings, model).name == "x-clip"


def test_broken_weight_files_are_input_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    for action in (lambda: method_of(path), lambda: HeadWeights.load(path)):
        with pytest.raises(InputError, match=r"x\.safetensors"):
            action()
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as the weights of a reranker"):
        method_of(path)
    described = {"format": "tbpipe-head-1", "method": "x-clip", "sizes": {}}
    kind = {"model": "m", "weights_sha256": "0", "tokens_per_frame": 1, "keep_tokens": "any"}
    save_file({"a": torch.ones(1)}, path, metadata={"head": json.dumps({**described, "kind": kind})})
    with pytest.raises(InputError, match="does not hold a head of x-clip"):
        HeadWeights.load(path).reranker(path, torch.device("cpu"))
    save_file({"a": torch.ones(1)}, path, metadata={"head": json.dumps(described)})
    with pytest.raises(InputError, match="its description is broken"):
        HeadWeights.load(path)


def test_every_system_has_its_head() -> None:
    assert {"clip4clip", "clip4clip-tight", "eercf", "ts2-net", "ucofia", "x-clip"} <= set(HEADS)
    assert TINY_CLIP_VIP["embed_dim"] == D
