"""The tasks by name: which files each reads, and how a model or a file of answers goes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from spr.core.errors import ConfigError
from spr.evaluation.expressions import read_expressions
from spr.evaluation.flickr import Protocol as FlickrProtocol
from spr.evaluation.flickr import read_sentences
from spr.evaluation.inference import from_folder
from spr.evaluation.questions import default_prompt
from spr.evaluation.regions_source import read_regions
from spr.evaluation.result import Result
from spr.evaluation.tasks.description import description_from_file, evaluate_description
from spr.evaluation.tasks.phrase_grounding import evaluate_phrase_grounding, phrase_grounding_from_file
from spr.evaluation.tasks.pope import Parser, evaluate_pope, pope_from_file, read_pope
from spr.evaluation.tasks.rec import SIZES, Areas, evaluate_rec, rec_from_file
from spr.evaluation.tasks.rec import Protocol as RecProtocol
from spr.evaluation.tasks.referring import Region, evaluate_referring, read_referring, referring_from_file
from spr.grounding import Dialect
from spr.models.protocols import Describer


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be evaluated: the options of `spr evaluate`.

    Attributes:
        annotations: The task's file or folder.
        images: The images' folder, for a model.
        predictions: A file of answers, instead of a model.
        dialect: How the answers of ``predictions`` write boxes; None for what the file says.
        model: The model as it was asked for; it decides the default question.
        prompt: The question; None for the default.
        protocol: ``spr`` or ``ferret``: how answers are read.
        samples: Answers a region (description).
        seed: Of sampled answers.
        entities: The folder of Flickr30k Entities (phrase-grounding).
        boxes: ``merged`` or ``any`` (phrase-grounding).
        parser: ``ferret`` or ``exact`` (pope).
        region: ``box`` or ``point`` (referring).
        areas: ``pixels`` or ``share`` (rec).
    """

    annotations: Path
    images: Path | None = None
    predictions: Path | None = None
    dialect: Dialect | None = None
    model: str = ""
    prompt: str | None = None
    protocol: str = "spr"
    samples: int = 1
    seed: int = 0
    entities: Path | None = None
    boxes: str = "merged"
    parser: str = "ferret"
    region: str = "box"
    areas: str = "pixels"


def rec(request: Request, describer: Describer | None) -> Result:
    """Referring expressions: RefCOCO, RefCOCO+, RefCOCOg."""
    if request.areas not in SIZES:
        raise ConfigError("--areas is not known", got=request.areas, expected=" | ".join(SIZES))
    areas = cast(Areas, request.areas)
    items = read_expressions(request.annotations)
    if describer is None:
        protocol = cast(RecProtocol, request.protocol)
        return rec_from_file(items, _file(request), request.dialect, protocol=protocol, areas=areas)
    prompt = request.prompt or default_prompt("rec", describer.dialect, request.model)
    load = from_folder(_images(request))
    return evaluate_rec(describer, items, load, prompt=prompt, seed=request.seed, areas=areas)


def phrase_grounding(request: Request, describer: Describer | None) -> Result:
    """Phrases of Flickr30k Entities."""
    if request.entities is None:
        raise ConfigError("phrase-grounding needs the dataset's own files", fix="give --entities FOLDER")
    boxes = cast(FlickrProtocol, request.boxes)
    items = read_sentences(request.annotations, request.entities, boxes)
    if describer is None:
        path, protocol = _file(request), request.protocol
        return phrase_grounding_from_file(items, path, request.dialect, boxes=boxes, protocol=protocol)
    load = from_folder(_images(request))
    return evaluate_phrase_grounding(describer, items, load, prompt=request.prompt, boxes=boxes, seed=request.seed)


def referring(request: Request, describer: Describer | None) -> Result:
    """Objects of LVIS, named by their place."""
    items = read_referring(request.annotations)
    if describer is None:
        return referring_from_file(items, _file(request))
    region, load = cast(Region, request.region), from_folder(_images(request))
    return evaluate_referring(describer, items, load, region=region, seed=request.seed)


def pope(request: Request, describer: Describer | None) -> Result:
    """Yes or no: is the object there?"""
    items, parser = read_pope(request.annotations), cast(Parser, request.parser)
    if describer is None:
        return pope_from_file(items, _file(request), parser=parser)
    load = from_folder(_images(request))
    return evaluate_pope(describer, items, load, parser=parser, prompt=request.prompt, seed=request.seed)


def description(request: Request, describer: Describer | None) -> Result:
    """Descriptions of held-out regions."""
    regions = read_regions(request.annotations)
    if describer is None:
        return description_from_file(regions.queries, _file(request), request.dialect, samples=request.samples)
    prompt = request.prompt or regions.prompt or default_prompt("description", describer.dialect, request.model)
    load = from_folder(request.images or regions.images or _images(request))
    samples, seed = request.samples, request.seed
    return evaluate_description(describer, regions.queries, load, prompt=prompt, samples=samples, seed=seed)


TASKS: dict[str, Callable[[Request, Describer | None], Result]] = {
    "rec": rec,
    "phrase-grounding": phrase_grounding,
    "referring": referring,
    "pope": pope,
    "description": description,
}
"""Each task: a request and a model, or None for the request's predictions, to a result."""


def _images(request: Request) -> Path:
    if request.images is None:
        raise ConfigError("A model needs the images", fix="give --images FOLDER, what the file names are relative to")
    if not request.images.is_dir():
        raise ConfigError("--images is no folder", got=request.images, fix="mend the path")
    return request.images


def _file(request: Request) -> Path:
    if request.predictions is None:
        raise ConfigError("There is nothing to evaluate", fix="give --model, or --predictions")
    return request.predictions
