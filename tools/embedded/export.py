"""Export a trained checkpoint to a folder that ``from_pretrained`` of the transformers classes loads.

Usage, from the root of the repository: ``python -m tools.embedded.export MODEL --out OUT --to FOLDER``, where OUT is
the folder of `tools.embedded.train`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, OwlViTImageProcessorPil, SiglipImageProcessorPil

from spr.embedded.scenes import SIZE
from tools.embedded.loop import checkpoint_path, load_modules
from tools.embedded.models import IMAGE_TOKENS, make_describer, make_detector, make_scorer
from tools.embedded.train_detector import QUERY_LENGTH
from tools.embedded.train_scorer import MAX_WORDS
from tools.embedded.vocabulary import START, make_tokenizer

MODELS = ("describer", "scorer", "detector")
_PIXELS: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # 2: bilinear
_SQUARE = {"height": SIZE, "width": SIZE}
_PROCESSOR = {
    "num_image_tokens": IMAGE_TOKENS - 1,  # without the newline, which the class adds
    "processor_class": "LlavaOnevisionProcessor",
    "vision_feature_select_strategy": "full",
}


def export(name: str, out: Path, folder: Path) -> None:
    """Write the model in the training folder ``out`` with its tokenizer and image processor.

    Raises:
        InputError: if there is no checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = {"describer": make_describer, "scorer": make_scorer, "detector": make_detector}[name]()
    load_modules(checkpoint_path(out, name), model=model)
    model.save_pretrained(folder)
    if name == "describer":
        make_tokenizer(chat=True).save_pretrained(folder)
        SiglipImageProcessorPil(size=_SQUARE, **_PIXELS).save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n", encoding="utf-8")
    elif name == "scorer":
        make_tokenizer(START, max_length=MAX_WORDS).save_pretrained(folder)
        # No centre crop: images are padded to squares before.
        CLIPImageProcessorPil(size=_SQUARE, do_center_crop=False, **_PIXELS).save_pretrained(folder)
    else:
        make_tokenizer(START, max_length=QUERY_LENGTH).save_pretrained(folder)
        OwlViTImageProcessorPil(size=_SQUARE, do_center_crop=False, **_PIXELS).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.export", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    args = parser.parse_args(arguments)
    export(args.model, args.out, args.to)


if __name__ == "__main__":
    main()
