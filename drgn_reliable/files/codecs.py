# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the pages of a kdump-compressed file are compressed and decompressed."""

from __future__ import annotations

import zlib
from collections.abc import Callable

__all__ = ("COMPRESSION", "CodecError", "page_packer", "unpack_page")


class CodecError(ValueError):
    """The data is not what its flag says."""


def _zlib(data: bytes, size: int) -> bytes:
    return zlib.decompressobj().decompress(data, size + 1)


def _lzo(data: bytes, size: int) -> bytes:
    from lzallright import LZOCompressor

    unpacked: bytes = LZOCompressor.decompress(data, size)
    return unpacked


def _snappy(data: bytes, size: int) -> bytes:
    from cramjam import snappy

    page = bytearray(size)
    return bytes(page[: snappy.decompress_raw_into(data, page)])


def _zstd(data: bytes, size: int) -> bytes:
    from zstandard import ZstdDecompressor

    return ZstdDecompressor().decompress(data, max_output_size=size)


_CODECS: dict[int, tuple[str, Callable[[bytes, int], bytes]]] = {
    0x1: ("zlib", _zlib),
    0x2: ("lzo", _lzo),
    0x4: ("snappy", _snappy),
    0x20: ("zstd", _zstd),
}
"""By ``DUMP_DH_COMPRESSED_*``, the flag of a page descriptor."""

COMPRESSION = {name: flag for flag, (name, _) in _CODECS.items()}
"""The flag of each way, by its name."""


def page_packer(flags: int) -> Callable[[bytes], bytes]:
    """A function that compresses a page in the way of a flag; 0 leaves it as it is."""
    if flags == COMPRESSION["zlib"]:
        return zlib.compress
    if flags == COMPRESSION["lzo"]:
        from lzallright import LZOCompressor

        return LZOCompressor().compress
    if flags == COMPRESSION["snappy"]:
        from cramjam import snappy

        return lambda page: bytes(snappy.compress_raw(page))
    if flags == COMPRESSION["zstd"]:
        from zstandard import ZstdCompressor

        return ZstdCompressor().compress
    return bytes


def unpack_page(flags: int, data: bytes, size: int) -> bytes:
    """Return a page of some size as it was before it was compressed.

    :param flags: of its descriptor; 0 for a page stored as it is.
    :raises CodecError: if the data is damaged or gives another size.
    """
    name, codec = _CODECS.get(flags, ("", None))
    if codec is None and flags:
        raise CodecError(f"compressed in an unknown way ({flags:#x})")
    try:
        page = codec(data, size) if codec else data
    except Exception as e:  # each library has an exception of its own
        raise CodecError(f"damaged {name} data ({e})") from e
    if len(page) != size:
        raise CodecError(f"{len(page)} bytes of {name or 'plain'} data, not {size}")
    return page
