"""Texts to try, of any characters: as Hypothesis has them, but without its table of all kinds of characters.

That table takes seconds to make, in every fresh checkout.
"""

from __future__ import annotations

from hypothesis import strategies as st

CHARACTERS = st.one_of(
    st.integers(0x20, 0x7E), st.integers(0, 0x24F), st.integers(0, 0xD7FF), st.integers(0xE000, 0x10FFFF)
).map(chr)
"""Any but the halves of surrogate pairs, which no UTF-8 holds; ASCII most often."""
ASCII = st.integers(0, 0x7F).map(chr)
