"""Image files without what they say about their owner: place, time, camera, names, comments, previews."""

from __future__ import annotations

import re

from PIL import Image

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in scan data, FF 00 is a byte and FF D0 to FF D7 are restarts
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs"}
_WEBP_CHUNKS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"ANIM", b"ANMF"}
_WEBP_METADATA = 0x0C  # the bits of VP8X that announce EXIF and XMP


def strip_metadata(data: bytes) -> bytes | None:
    """A JPEG, PNG or WebP file with the same encoded pixels and colour profile, and without anything else.

    EXIF (also its orientation), XMP, IPTC, comments, texts, previews, further pictures and data after the end are
    removed. None for other formats, and for files that are not well-formed; these should be written again from their
    pixels.
    """
    try:
        if data.startswith(_JPEG):
            return _strip_jpeg(data)
        if data.startswith(_PNG):
            return _strip_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _strip_webp(data)
    except IndexError:  # the file ends early
        pass
    return None


def forget_metadata(image: Image.Image) -> Image.Image:
    """The same image, of which Pillow will save no more than pixels and colour profile."""
    image.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
    return image


def _strip_jpeg(data: bytes) -> bytes | None:
    kept, position = [_JPEG], len(_JPEG)
    while True:
        if data[position] != 0xFF:
            return None
        while data[position] == 0xFF:
            position += 1
        marker, position = data[position], position + 1
        if marker == 0xD9:
            return b"".join([*kept, b"\xff\xd9"])
        length = data[position] * 256 + data[position + 1]
        payload = data[position + 2 : position + length]
        if length < 2 or len(payload) != length - 2 or marker < 0xC0:
            return None
        position += length
        if marker == 0xE0 and payload.startswith(b"JFIF\0"):
            payload = payload[:12] + b"\0\0"  # without the preview
        if _is_kept(marker, payload):
            kept.append(bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload)
        if marker == 0xDA:
            end = _SCAN_END.search(data, position)
            if end is None:
                return None
            kept.append(data[position : end.start()])
            position = end.start()


def _is_kept(marker: int, payload: bytes) -> bool:
    names = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}  # the last decides how colours are decoded
    if 0xE0 <= marker <= 0xEF:
        return marker in names and payload.startswith(names[marker])
    return marker != 0xFE  # a comment


def _strip_png(data: bytes) -> bytes | None:
    kept, position = [_PNG], len(_PNG)
    while True:
        length, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        chunk = data[position : position + length + 12]
        if len(name) < 4 or len(chunk) < length + 12:
            return None
        if name in _PNG_CHUNKS:
            kept.append(chunk)
        if name == b"IEND":
            return b"".join(kept)
        position += len(chunk)


def _strip_webp(data: bytes) -> bytes | None:
    kept, position = [b"WEBP"], 12
    end = 8 + int.from_bytes(data[4:8], "little")
    while position < end:
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        chunk = data[position : position + 8 + length + length % 2]
        if len(name) < 4 or len(chunk) < 8 + length:
            return None
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_METADATA]) + chunk[9:]
        if name in _WEBP_CHUNKS:
            kept.append(chunk)
        position += len(chunk)
    body = b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body
