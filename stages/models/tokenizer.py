"""Text -> token ids, with the tokenizer that a model was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from index_store.errors import ComponentMissingError
from stages.models.architecture import HUB_PREFIX, Architecture, open_clip_folder
from stages.models.byte_pairs import BytePairTokenizer
from stages.models.weights import MERGES_FILE


class Tokenizer:
    """Texts -> ids int64 [T, W]: start, sub-words cut so that the end-of-text token fits, end, padding."""

    def __init__(self, encode: Callable[[list[str]], Tensor], context_length: int, end_id: int) -> None:
        self._encode = encode
        self.context_length = context_length
        """W, the longest text the tower sees, in tokens."""
        self.end_id = end_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids int64 [T, W] of the texts; a longer text is cut."""
        return self._encode(list(texts))


def build(architecture: Architecture) -> Tokenizer:
    """The tokenizer of ``architecture``. Raises ComponentMissingError when a library or its vocabulary is missing."""
    name = architecture.text.get("hf_tokenizer_name")
    return _hub_tokenizer(architecture, name) if name else _byte_pair_tokenizer(architecture)


def _byte_pair_tokenizer(architecture: Architecture) -> Tokenizer:
    options: dict[str, Any] = dict(architecture.text.get("tokenizer_kwargs") or {})
    merges = architecture.folder / MERGES_FILE if architecture.folder else None
    if merges is None or not merges.is_file():
        merges = open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz"
    context_length = int(architecture.text.get("context_length", 77))
    if not options:
        plain = BytePairTokenizer(merges, context_length)
        return Tokenizer(plain, context_length, plain.end_id)
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(str(merges), context_length=context_length, **options)
    return Tokenizer(tokenizer, context_length, tokenizer.eot_token_id)


def _hub_tokenizer(architecture: Architecture, name: str) -> Tokenizer:
    from open_clip.tokenizer import HFTokenizer

    is_own_folder = architecture.folder is not None and not architecture.name.startswith(HUB_PREFIX)
    source = str(architecture.folder) if is_own_folder else name
    context_length = int(architecture.text.get("context_length", 77))
    try:
        tokenizer = HFTokenizer(
            source,
            context_length=context_length,
            tokenizer_mode=architecture.text.get("tokenizer_mode"),
            **(architecture.text.get("tokenizer_kwargs") or {}),
        )
    except ImportError as error:
        raise ComponentMissingError(
            f"model {architecture.name} needs the transformers library for its texts; run: pip install transformers"
        ) from error
    except Exception as error:  # transformers raises anything from ValueError to OSError
        raise ComponentMissingError(
            f"the tokenizer {source} of model {architecture.name} is not in the cache and could not be downloaded "
            f"({str(error).splitlines()[0][:200]}); fetch it once with network access"
        ) from error
    end_id = tokenizer.tokenizer.eos_token_id
    return Tokenizer(tokenizer, context_length, tokenizer.tokenizer.sep_token_id if end_id is None else end_id)
