"""One file per decoder library. Where both can read a file, their pixels are identical, bit for bit; tests check it.

| decoder    | when                                                                                        |
|------------|---------------------------------------------------------------------------------------------|
| decord     | first choice on a CPU                                                                       |
| pyav       | opens every file and lists its frames; decodes what decord cannot, and salvages the damaged |

torchcodec.py decodes on a GPU (NVDEC), in threads of the main process; it takes the place of the whole DecodePool.
A decoder is named by its module here (``decord``), or by the full name of a module elsewhere.
"""

from __future__ import annotations

import importlib
from typing import cast

from stages.decoders.base import Decoder


def load_decoder(name: str) -> Decoder:
    """The decoder of that name. Raises ImportError where its library is not installed."""
    module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
    return cast(Decoder, module.DECODER)
