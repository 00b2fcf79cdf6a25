"""The training command: its maths, a run of a few seconds, and the model that ships."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from index_store.settings import SamplingSettings
from stages.models import MODELS, load_model
from stages.models.bpe import Pair, learn_merges, write_merges
from stages.models.tiny import TinySizes, model_config, new_model, new_tokenizer, save_tokenizer, vocabulary_size
from stages.preprocess import Preprocessor
from stages.synthetic.pretrain import (
    PretrainConfig,
    Recall,
    Trainer,
    contrast,
    eercf_scores,
    learning_rate_factor,
    main,
    pretrain,
    recall,
)
from stages.synthetic.pretrain_data import (
    attribute_labels,
    augment,
    encode_frames,
    encode_texts,
    gated_patches,
    make_corpus,
    pool_frames,
    true_elsewhere,
)
from stages.synthetic.render import CaptionedVideo, VideoFormat, draw_scenes, render_corpus, render_demo
from stages.synthetic.scenes import LEVELS, Combinations, describe
from stages.video import decode

SIZES = TinySizes(16, 16, 8, 32, 1, 32, 1, 16, 40)
CONFIG = PretrainConfig(
    num_videos=32,
    num_validation=8,
    batch_groups=4,
    frames_kept=2,
    steps=10,
    warmup_steps=2,
    learning_rate=3e-3,
    num_merges=60,
    video_format=VideoFormat(32, 32, 4, 1.0),
    vocabulary_captions=60,
)


def read_merges(path: Path) -> list[Pair]:
    """The merges of a file that ``write_merges`` wrote."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()[1:]
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def test_merges_join_the_most_frequent_pair_first_and_survive_the_file(tmp_path: Path) -> None:
    merges = learn_merges(["ab ab ab", "abc b"], 10)
    assert merges == [("a", "b</w>"), ("a", "b"), ("ab", "c</w>")]
    write_merges(tmp_path / "merges.gz", merges)
    assert read_merges(tmp_path / "merges.gz") == merges


def test_the_tokenizer_has_the_vocabulary_that_the_config_says_and_takes_any_text(tmp_path: Path) -> None:
    merges = learn_merges(["a red circle", "a red star"], 20)
    save_tokenizer(tmp_path, SIZES, merges)
    tokenizer = new_tokenizer(tmp_path, 12)
    assert tokenizer.vocab_size == vocabulary_size(len(merges))
    config = json.loads((tmp_path / "open_clip_config.json").read_text(encoding="utf-8"))
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == tokenizer.vocab_size
    ids = tokenizer(["red circle", "größer, \N{SNOWMAN}", ""])
    assert (ids[0] != 0).sum() == 2 + 2
    assert int(ids.max()) == tokenizer.eot_token_id == tokenizer.vocab_size - 1


def test_texts_cut_to_the_longest_equal_open_clips_own_encoding() -> None:
    torch.manual_seed(0)
    model = new_model(SIZES, 5).eval()
    tokens = torch.zeros(3, SIZES.context_length, dtype=torch.long)
    for row, length in enumerate((3, 7, 12)):
        tokens[row, :length] = torch.randint(1, 500, (length,))
        tokens[row, length - 1] = vocabulary_size(5) - 1
    torch.testing.assert_close(encode_texts(model, tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_frame_embeddings_are_open_clips_own() -> None:
    torch.manual_seed(0)
    model = new_model(SIZES, 5).eval()
    pixels = torch.randn(2, 3, 3, 16, 16)
    embeddings, patches = encode_frames(model, pixels)
    assert patches.shape == (2, 3, 4, 16)
    model.visual.output_tokens = False
    torch.testing.assert_close(embeddings.flatten(0, 1), model.encode_image(pixels.flatten(0, 1)))


def test_the_patch_gate_is_a_softmax_over_all_patches_of_a_video() -> None:
    generator = torch.Generator().manual_seed(1)
    sentences = functional.normalize(torch.randn(3, 4, generator=generator), dim=-1)
    patches = torch.randn(2, 2, 5, 4, generator=generator)
    scores = gated_patches(sentences, patches, 0.1)
    for t in range(3):
        for v in range(2):
            fits = [float(sentences[t] @ (p / p.norm())) for p in patches[v].reshape(10, 4)]
            weights = [math.exp(fit / 0.1) for fit in fits]
            expected = sum(w * fit for w, fit in zip(weights, fits, strict=True)) / sum(weights)
            assert float(scores[t, v]) == pytest.approx(expected, abs=1e-5)


def test_eercf_of_one_frame_without_detail_is_the_cosine_times_its_weights() -> None:
    generator = torch.Generator().manual_seed(2)
    sentences = functional.normalize(torch.randn(3, 4, generator=generator), dim=-1)
    frames = torch.randn(2, 1, 4, generator=generator)
    scores = eercf_scores(sentences, frames, frames[:, :, None])
    torch.testing.assert_close(scores, (0.8 + 0.2 + 0.2 + 0.5) * sentences @ pool_frames(frames).T)


def test_contrast_leaves_out_pairs_that_happen_to_be_true() -> None:
    logits = torch.tensor([[1.0, 9.0], [0.0, 2.0]])
    ignored = torch.tensor([[False, True], [False, False]])
    expected = (0 + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + 0) / 4
    assert float(contrast(logits, ignored)) == pytest.approx(expected, abs=1e-5)
    assert float(contrast(logits, torch.zeros(2, 2, dtype=torch.bool))) > 3


def test_true_elsewhere_finds_vague_captions_and_never_the_diagonal() -> None:
    scenes = draw_scenes(4, 6, LEVELS["single"])
    exact = [describe(scene, LEVELS["single"].says) for scene in scenes]
    vague = [replace(statement, claims=(), background=None) for statement in exact]
    assert not true_elsewhere(exact, scenes).any()
    torch.testing.assert_close(true_elsewhere(vague, scenes), ~torch.eye(6, dtype=torch.bool))


def test_recall_counts_ties_against_the_right_answer() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    expected = Recall(100 / 3, 100.0)
    assert recall(scores).at_1 == pytest.approx(expected.at_1)
    assert recall(scores).at_5 == expected.at_5


@pytest.mark.parametrize("changes", [{"num_videos": 15}, {"frames_kept": 1}, {"steps": 0}], ids=str)
def test_settings_that_cannot_be_run_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"batch|frames"):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_the_command_line_refuses_too_few_videos(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--output", "unused", "--work", "unused", "--videos", "8"])
    assert stopped.value.code == 2
    assert "8 videos do not fill a batch of 128" in capsys.readouterr().err


def test_the_learning_rate_rises_then_falls() -> None:
    config = replace(CONFIG, steps=110, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(110)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[60] == pytest.approx(0.02 + 0.98 / 2)
    assert sorted(factors[10:], reverse=True) == factors[10:]


def test_labels_name_what_is_there() -> None:
    (scene,) = draw_scenes(8, 1, LEVELS["pair"])
    labels = attribute_labels(scene)
    assert labels.shape == (100 + 10 + 10 + 10,)
    assert labels[:100].sum() == 2
    assert labels[-10:].sum() == 1


def test_augmented_frames_of_a_video_move_together_and_stay_in_range() -> None:
    frames = torch.randint(0, 256, (1, 1, 3, 16, 16), dtype=torch.uint8).expand(6, 2, 3, 16, 16)
    pixels = augment(frames, torch.Generator().manual_seed(0))
    assert pixels.shape == (6, 2, 3, 16, 16)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 255
    between_frames = (pixels[:, 0] - pixels[:, 1]).abs().mean()
    between_videos = (pixels[0, 0] - pixels[1:, 0]).abs().mean()
    assert between_frames < 0.3 * between_videos


@pytest.mark.slow
def test_a_few_steps_of_training_fit_a_batch(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(CONFIG, SIZES, tmp_path)
    corpus = make_corpus(
        tmp_path / "videos", 5, 16, CONFIG.level, 4, CONFIG.frames_kept, SIZES.image_size, CONFIG.video_format
    )
    rows = torch.arange(16).numpy()
    losses = [trainer.step(min(i, 5), corpus, rows) for i in range(40)]
    assert losses[0]["videos"] == pytest.approx(math.log(16), abs=0.6)
    assert losses[-1]["videos"] < losses[0]["videos"] - 0.4
    assert losses[-1]["heads"] < 0.5 * losses[0]["heads"]


def test_the_shipped_files_are_what_the_command_writes_and_small() -> None:
    folder = MODELS["tbpipe-small"]
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    merges = read_merges(folder / "bpe_merges.txt.gz")
    assert config == model_config(TinySizes(), len(merges))
    new_model(TinySizes(), len(merges)).load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 11_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("combinations", "floor"), [("any", 75.0), ("unseen", 55.0)])
def test_the_shipped_model_finds_videos_that_training_never_saw(
    tmp_path: Path, combinations: Combinations, floor: float
) -> None:
    videos = render_corpus(tmp_path, 555, 60, "mixed", combinations)
    scores = broad_scores([video.caption for video in videos], videos)
    assert recall(scores).at_1 >= floor
    assert recall(scores).at_5 >= 90


@pytest.mark.slow
def test_the_shipped_model_answers_the_demos_plain_queries(tmp_path: Path) -> None:
    videos, queries = render_demo(tmp_path)
    plain = [query for query in queries if not query.is_hard]
    best = broad_scores([query.text for query in plain], videos).argmax(dim=1).tolist()
    right = [videos[i].key in query.relevant_keys for i, query in zip(best, plain, strict=True)]
    assert sum(right) >= 11


def broad_scores(texts: list[str], videos: list[CaptionedVideo]) -> torch.Tensor:
    """Cosine of every text with every video [T, V], with the shipped model, as extract and search do it."""
    model = load_model("tbpipe-small", device="cpu")
    preprocess, sampling = Preprocessor(model.settings()), SamplingSettings("uniform", 12)
    frames = [preprocess(torch.from_numpy(decode(video.path, sampling).frames)) for video in videos]
    pooled = pool_frames(torch.stack([model.encode_frames(pixels)[:, 0] for pixels in frames]))
    return functional.normalize(model.encode_texts(texts).sentence, dim=-1) @ pooled.T


@pytest.mark.slow
def test_the_command_writes_a_model_that_loads_and_the_same_one_again(tmp_path: Path) -> None:
    first = pretrain(tmp_path / "a", tmp_path / "work", CONFIG, SIZES, evaluate_every=5)
    assert pretrain(tmp_path / "b", tmp_path / "work", CONFIG, SIZES, evaluate_every=5) == first
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "bpe_merges.txt.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    weights = load_file(tmp_path / "a" / "open_clip_model.safetensors")
    new_model(SIZES, len(read_merges(tmp_path / "a" / "bpe_merges.txt.gz"))).load_state_dict(weights)
    model = load_model(f"local-dir:{tmp_path / 'a'}", "", device="cpu")
    assert model.encode_frames(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 5, 16)
    assert model.encode_texts(["a red circle"]).sentence.shape == (1, 16)
    records = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records if "videos" in record] == list(range(10))
    assert [record["step"] for record in records if "broad" in record] == [4, 9]
