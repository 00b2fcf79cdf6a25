from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_store.errors import UsageError
from index_store.settings import ComputeDtype
from stages.frame_batches import FrameBatches
from stages.lanes import Lanes
from stages.models import load_model
from stages.models.clip import ClipModel, choose_device, choose_devices
from stages.preprocess import Preprocessor
from tests.stages.model_files import TINY, reference_model, save_clip_vip, save_folder

FRAMES = 6
LENGTHS = (6, 1, 5, 6, 6, 2, 6, 3)
SIZES = ((40, 50), (32, 32), (64, 30))


@pytest.fixture(scope="module", params=["single frames", "whole videos"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    if request.param == "whole videos":
        save_clip_vip(folder)
    else:
        save_folder(folder, reference_model(), TINY)
    return load_model(f"local-dir:{folder}", device="cpu", dtype="float32", towers="image")


def some_videos() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    return [
        rng.integers(0, 256, (length, *SIZES[number % len(SIZES)], 3), np.uint8)
        for number, length in enumerate(LENGTHS)
    ]


class Collected:
    """A video, and the threads in which it was told its tokens."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.threads: set[int] = set()

    def take(self, rows: Tensor) -> None:
        self.rows.append(rows.clone())
        self.threads.add(threading.get_ident())


class Device:
    """A model that remembers what its device was given, and whose device has room for so many frames or videos."""

    def __init__(self, model: ClipModel, room: int = 1000) -> None:
        self.device, self.sees_videos, self.room = model.device, model.sees_videos, room
        self.settings = model.settings
        self.sizes: list[int] = []
        self._model = model

    def encode_frames(self, pixels: Tensor) -> Tensor:
        self._take(pixels)
        return self._model.encode_frames(pixels)

    def encode_videos(self, pixels: Tensor, is_frame: Tensor) -> Tensor:
        self._take(pixels)
        return self._model.encode_videos(pixels, is_frame)

    def _take(self, pixels: Tensor) -> None:
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(pixels))


def encode(devices: list[Device], batch_frames: int, may_wait: bool = True) -> list[Collected]:
    """The tokens of all videos; the devices are models, or as good as. ``may_wait``: torch may for a GPU, by itself."""
    collected = [Collected() for _ in LENGTHS]
    with Lanes(devices, Preprocessor(devices[0].settings())) as lanes:  # type: ignore[arg-type]
        batches = FrameBatches(lanes, batch_frames, FRAMES if devices[0].sees_videos else 0)
        if not may_wait:
            torch.cuda.set_sync_debug_mode("error")
        try:
            for video, frames in zip(collected, some_videos(), strict=True):
                batches.add(video, frames)
            batches.flush()
        finally:
            if not may_wait:
                torch.cuda.set_sync_debug_mode("default")
    return collected


@pytest.mark.parametrize("num_devices", [2, 3])
def test_several_devices_give_the_bits_of_one(model: ClipModel, num_devices: int) -> None:
    alone, devices = Device(model), [Device(model) for _ in range(num_devices)]
    for video, same, length in zip(encode([alone], 12), encode(devices, 12), LENGTHS, strict=True):
        tokens = torch.cat(video.rows)
        assert tokens.shape == (length, model.tokens_per_frame, 24)
        assert torch.cat(same.rows).equal(tokens)
        assert same.threads == {threading.get_ident()}
    size, number = (2, 4) if model.sees_videos else (12, 3)
    assert alone.sizes == [size] * number
    assert [len(device.sizes) for device in devices] == [len(range(n, number, num_devices)) for n in range(num_devices)]


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_batch_that_is_too_big_is_halved_and_so_are_all_that_follow(model: ClipModel, num_devices: int) -> None:
    room = 1 if model.sees_videos else 4
    devices = [Device(model, room) for _ in range(num_devices)]
    expected = encode([Device(model)], 12)
    for video, other in zip(encode(devices, 12), expected, strict=True):
        torch.testing.assert_close(torch.cat(video.rows), torch.cat(other.rows), rtol=1e-4, atol=1e-5)
    sizes = [size for device in devices for size in device.sizes]
    assert sizes == [1] * 8 if model.sees_videos else sizes == [3] * 12


@pytest.mark.parametrize("num_devices", [1, 2])
def test_what_a_device_raises_is_raised_here_and_no_thread_stays(model: ClipModel, num_devices: int) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        encode([Device(model, room=0) for _ in range(num_devices)], 12)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tbpipe-lane")]


@pytest.fixture
def on_gpu(model: ClipModel) -> ClipModel:
    return model.on(torch.device("cuda", 0))


@pytest.mark.gpu
def test_lanes_of_gpus_agree_with_each_other_to_the_bit_and_with_the_cpu_nearly(
    model: ClipModel, on_gpu: ClipModel
) -> None:
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    expected = encode([Device(model)], 12)
    alone = encode([Device(on_gpu)], 12)
    for several in ([Device(on_gpu), Device(on_gpu)], [Device(on_gpu.on(gpu)) for gpu in gpus]):
        for video, same, other in zip(alone, encode(several, 12), expected, strict=True):
            assert torch.cat(same.rows).equal(torch.cat(video.rows))
            torch.testing.assert_close(torch.cat(video.rows), torch.cat(other.rows), atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_lane_never_waits_for_its_gpu(on_gpu: ClipModel, dtype: ComputeDtype) -> None:
    on_gpu.dtype = dtype
    encode([Device(on_gpu)], 12)  # what is done once may wait
    encode([Device(on_gpu)], 12, may_wait=False)


@pytest.mark.gpu
def test_what_does_not_fit_on_a_gpu_is_halved(on_gpu: ClipModel) -> None:
    expected = encode([Device(on_gpu)], 12)
    for video, other in zip(encode([Device(on_gpu, room=1)], 12), expected, strict=True):
        torch.testing.assert_close(torch.cat(video.rows), torch.cat(other.rows), rtol=1e-3, atol=1e-4)


def test_devices_are_named_one_by_one_or_all_at_once() -> None:
    assert choose_devices("cpu, cpu") == [torch.device("cpu")] * 2
    assert choose_device("cpu,cpu") == torch.device("cpu")
    for wrong in ("cpu,tpu", "cuda:63", "cpu,meta", ""):
        with pytest.raises(UsageError, match="device"):
            choose_devices(wrong)
