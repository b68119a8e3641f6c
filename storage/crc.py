"""CRC-32C of a whole from those of its parts, which were summed in any order.

Source: the GF(2) polynomial arithmetic that zlib documents for crc32_combine, with CRC-32C's polynomial.
"""

from __future__ import annotations

import base64
from functools import cache

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bits reversed: the highest bit is x to the power 0."""


def combine(first: int, second: int, second_bytes: int) -> int:
    """CRC-32C of two pieces one after the other.

    Args:
        first: CRC-32C of the first piece.
        second: CRC-32C of the second piece.
        second_bytes: Length of the second piece.
    """
    return _times(_x_to_the_8(second_bytes), first) ^ second


def to_base64(crc32c: int) -> str:
    """As Google Cloud Storage and S3 write it."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def from_base64(text: str) -> int:
    """The number behind Google's and S3's spelling."""
    return int.from_bytes(base64.b64decode(text), "big")


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo CRC-32C's."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@cache
def _x_to_the_8(count: int) -> int:
    """x to the power ``8 * count``: what ``count`` bytes of zeros do to a CRC."""
    result, square = 1 << 31, 1 << 23
    while count:
        if count & 1:
            result = _times(square, result)
        square = _times(square, square)
        count >>= 1
    return result
