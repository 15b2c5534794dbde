"""Prompts as a describer reads them: equal ones once for all samples, and those about one image together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spr.models.describers.generation import Samples
from spr.models.protocols import DescribeRequest

_SIMILAR = 7 / 8  # the least length of a prompt that is read with a longer one because of their image


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A request to a model, as text.

    Attributes:
        request: The request.
        text: The request's prompt, rendered by the chat template, with one placeholder for the image.
        length: Approximate number of its tokens, including those of the image.
    """

    request: DescribeRequest
    text: str
    length: int


def image_keys(prompts: Sequence[Prompt]) -> dict[int, bytes]:
    """A digest of each image's content, by the image's `id`."""
    keys: dict[int, bytes] = {}
    for prompt in prompts:
        image = prompt.request.image
        if id(image) not in keys:
            digest = hashlib.sha256(f"{image.mode} {image.size} {image.getpalette()}".encode())
            digest.update(image.tobytes())
            keys[id(image)] = digest.digest()
    return keys


def group_samples(
    prompts: Sequence[Prompt], keys: Mapping[int, bytes], *, equal_lengths: bool = False
) -> list[Samples[Prompt]]:
    """Group prompts of the same text and image, which are read once; then come others about that image.

    These have about the same length, or with ``equal_lengths`` exactly the same.
    """
    groups: dict[tuple[bytes, str], list[int]] = {}
    of_image: dict[bytes, list[str]] = {}
    for k, prompt in enumerate(prompts):
        key = keys[id(prompt.request.image)]
        if (key, prompt.text) not in groups:
            of_image.setdefault(key, []).append(prompt.text)
        groups.setdefault((key, prompt.text), []).append(k)
    order: dict[tuple[bytes, str], None] = {}
    for key, text in groups:
        if (key, text) in order:
            continue
        length = prompts[groups[key, text][0]].length
        least = length if equal_lengths else length * _SIMILAR
        others = [(key, other) for other in of_image[key] if prompts[groups[key, other][0]].length >= least]
        order |= dict.fromkeys([(key, text), *others])
    samples = (groups[group] for group in order)
    return [
        Samples(prompts[ks[0]], prompts[ks[0]].length, tuple(ks), tuple(prompts[k].request.seed for k in ks))
        for ks in samples
    ]
