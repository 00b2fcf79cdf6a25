"""Why a video could not be decoded: one exception, with a code that is stored and can be counted.

REASONS lists every code; a code, once released, keeps its meaning, because catalogs remember it.
"""

from __future__ import annotations

from index_store.errors import TbpipeError

REASONS: dict[str, str] = {
    "missing": "the file is gone, or a link points nowhere; run extract again after restoring it",
    "not_a_file": "a directory, FIFO, socket or device, or links that form a loop; only regular files are read",
    "unreadable": "the file system refused to read the file; check its permissions and the disk",
    "empty_file": "the file has 0 bytes; copy it again from its source",
    "playlist": "a text that points to other files or addresses, which are never followed; add what it names instead",
    "not_a_video": "the content is in no video format that is known",
    "no_video_stream": "a valid container without a video track, for instance audio only",
    "no_frame": "a video track from which no picture could be decoded; make the file again from its source",
    "damaged": "the file is broken or cut off; what could be decoded, if anything, was used",
    "changed_while_reading": "the file changed while it was read; run extract again when it is complete",
    "decode_timeout": "decoding took longer than the time limit and was stopped; raise the limit or re-encode the file",
    "decoder_crashed": "the decoder ended its process on this file; re-encode it, and report it",
    "not_finite": "the model gave infinite or undefined numbers for its frames; use another compute dtype",
    "out_of_memory": "decoding needs more memory than a worker may use; raise the limit or re-encode the file smaller",
}
"""Reason code -> what it means and what to do."""

DETAIL_LENGTH = 300


class DecodeError(TbpipeError):
    """One video gave no frame. Costs that video only.

    ``reason_code`` is a key of REASONS; ``detail`` says what was found, printable and at most 300 characters.
    """

    def __init__(self, reason_code: str, detail: str = "") -> None:
        if reason_code not in REASONS:
            raise ValueError(f"{reason_code!r} is not one of the reason codes {', '.join(REASONS)}")
        self.reason_code = reason_code
        self.detail = printable(detail)
        super().__init__(reason_code, self.detail)

    def __str__(self) -> str:
        return f"{self.detail or self.reason_code}: {REASONS[self.reason_code]}"


def printable(text: str) -> str:
    """``text`` as one line of at most 300 printable characters: decoder messages may quote bytes of the file."""
    line = " ".join(text.split())
    safe = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return safe if len(safe) <= DETAIL_LENGTH else safe[: DETAIL_LENGTH - 1] + "…"
