"""Imports what takes seconds, for processes that are forked from one that has it."""

import faiss  # noqa: F401
import open_clip  # noqa: F401
import torch  # noqa: F401

from pipeline import cli  # noqa: F401
from pipeline.jobs import refresh_run  # noqa: F401
from stages import extract, index, rerank  # noqa: F401
from stages.training import trainer  # noqa: F401
