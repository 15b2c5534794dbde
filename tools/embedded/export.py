"""Export a trained checkpoint to a folder that transformers' ``Auto`` classes load.

Usage, from the root of the repository: ``python -m tools.embedded.export MODEL --out OUT --to FOLDER``, where OUT is
the folder of `tools.embedded.train`. Without ``--out``, only the tokenizer and the processor are written, and the
weights in FOLDER stay as they are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil, OwlViTImageProcessorPil

from spr.core.errors import InputError
from spr.embedded.scenes import SIZE
from tools.embedded.loop import checkpoint_path, load_modules
from tools.embedded.models import IMAGE_TOKENS, make_describer, make_detector, make_scorer
from tools.embedded.train_detector import QUERY_LENGTH
from tools.embedded.train_scorer import MAX_WORDS
from tools.embedded.vocabulary import START, make_tokenizer

MODELS = ("describer", "scorer", "detector")
_PIXELS: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # 2: bilinear
_SQUARE = {"height": SIZE, "width": SIZE}
# The describer reads an image as one square view: 64 patches and a newline token. transformers' processor of
# LLaVA-OneVision needs torchvision and always adds tiles, so the folder names that of LLaVA-NeXT. It adds tiles too,
# here always one, which the model ignores: its config allows no tiles. With these settings, the processor counts one
# token for the view, two for the tile, and the additional ones, whatever the size of the image.
_PROCESSOR = {
    "processor_class": "LlavaNextProcessor",
    "patch_size": SIZE,
    "num_additional_image_tokens": IMAGE_TOKENS - 3,
    "vision_feature_select_strategy": "full",
}
_ONE_TILE: dict[str, Any] = {"image_grid_pinpoints": [[SIZE, SIZE]], "crop_size": _SQUARE}


def export(name: str, out: Path, folder: Path) -> None:
    """Write the model in the training folder ``out`` with its tokenizer and processor.

    Raises:
        InputError: if there is no checkpoint.
    """
    model = {"describer": make_describer, "scorer": make_scorer, "detector": make_detector}[name]()
    load_modules(checkpoint_path(out, name), model=model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    export_processor(name, folder)


def export_processor(name: str, folder: Path) -> None:
    """Write the model's tokenizer and the settings of its processor."""
    # No centre crop: the scorer's images are padded to squares before.
    pixels: dict[str, Any] = {"size": _SQUARE, "do_center_crop": False, **_PIXELS}
    if name == "describer":
        make_tokenizer(chat=True).save_pretrained(folder)
        LlavaNextImageProcessorPil(**pixels, **_ONE_TILE).save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n", encoding="utf-8")
    elif name == "scorer":
        make_tokenizer(START, max_length=MAX_WORDS).save_pretrained(folder)
        CLIPImageProcessorPil(**pixels).save_pretrained(folder)
    else:
        make_tokenizer(START, max_length=QUERY_LENGTH).save_pretrained(folder)
        OwlViTImageProcessorPil(**pixels).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.export", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, help="folder of the training (default: export only the processor)")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    args = parser.parse_args(arguments)
    if args.out is not None:
        export(args.model, args.out, args.to)
    elif not args.to.is_dir():
        raise InputError(f"There is no folder {args.to}", fix="give an exported model, or --out with a trained one")
    else:
        export_processor(args.model, args.to)


if __name__ == "__main__":
    main()
