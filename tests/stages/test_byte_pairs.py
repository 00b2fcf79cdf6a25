from __future__ import annotations

import functools
import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, default_bpe

from stages.models.byte_pairs import BytePairTokenizer
from tests.texts import ASCII, CHARACTERS

LETTERS = st.text(alphabet=st.sampled_from("aàbΩ中1२'&;<>_!\n\t é🙂İ\u017fK\x1b\u2028"), max_size=12)
SPECIAL = st.sampled_from(
    ["<start_of_text>", "<END_OF_TEXT>", "it's", "&amp;amp;lt;", "Ã©tÃ©", "they'LL", "20 km", "ﬁne"]
)


@functools.cache
def ours() -> BytePairTokenizer:
    return BytePairTokenizer(Path(default_bpe()), 77)


@functools.cache
def theirs() -> SimpleTokenizer:
    return SimpleTokenizer()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.text(CHARACTERS, max_size=20), LETTERS, SPECIAL), max_size=5).map(" ".join))
@example("")
@example("a photo of a dog, which doesn't run " * 12)
def test_any_text_gives_the_ids_of_open_clip(text: str) -> None:
    assert torch.equal(ours()([text]), theirs()([text]))


@settings(deadline=None, max_examples=60)
@given(st.text(ASCII, max_size=40))
def test_so_does_any_ascii_text(text: str) -> None:
    assert torch.equal(ours()([text, "a"]), theirs()([text, "a"]))


@pytest.mark.parametrize(
    "lines",
    [["#", "a b", "c d"], ["#", "a b", ""], ["#", "a b", "b c", "ab c", "a bc"], ["#", "a b\r", "ab c\r"], ["#"]],
)
def test_any_file_of_merges_gives_the_ids_of_open_clip(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    tokenizer, expected = BytePairTokenizer(path, 12), SimpleTokenizer(str(path), context_length=12)
    texts = ["abc bcd", "abcabc abab", "cd"]
    assert torch.equal(tokenizer(texts), expected(texts))
    assert tokenizer.end_id == expected.eot_token_id
