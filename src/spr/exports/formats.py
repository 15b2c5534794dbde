"""The formats by name."""

from __future__ import annotations

from spr.exports import llamafactory, llava, ms_swift, rlaif_v, trl
from spr.exports.rows import Format

FORMATS: dict[str, Format] = {
    module.FORMAT.key: module.FORMAT for module in (trl, llamafactory, ms_swift, llava, rlaif_v)
}
"""What `spr export --format` takes."""
