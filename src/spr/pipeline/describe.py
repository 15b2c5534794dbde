"""Region queries → candidates: several descriptions a query, all as answers to one training prompt (METHOD §3).

The model is asked in easier ways than it will be trained on: about the crop, and about the crop with its objects
listed. What it answers there is mapped back to the original image and written anew in its dialect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from PIL import Image

from spr.config import Config, DescriberConfig, PromptsConfig
from spr.core.boxes import clip
from spr.core.errors import ConfigError, GroundingError
from spr.core.images import ImageProblem
from spr.core.randomness import stable_hash
from spr.core.views import crop_window, cut, shift, unshift
from spr.grounding import Dialect, GroundedText, parse, render, render_box
from spr.grounding.prose import without_surrogates
from spr.models.protocols import Describer, DescribeRequest
from spr.models.registry import load_describer
from spr.pipeline.answers import KeptAnswers
from spr.pipeline.decoding import decode_ahead, in_groups
from spr.pipeline.stage import Stage
from spr.records import PROMPT_KINDS, Box, Candidate, PreferencePair, PromptKind, RegionQuery, Size, Span
from spr.records.schemas import from_table, to_table
from spr.runs.store import StageOutput, dropped_table

NAME = "candidates"
QUERIES_AT_ONCE = 32
"""Queries whose requests are handed to the model together: enough to fill its batches. Fewer where images are large."""


class Asked(NamedTuple):
    """A request with what its answer becomes a candidate of."""

    candidate_id: str
    kind: PromptKind
    request: DescribeRequest


def training_prompt(query: RegionQuery | PreferencePair, dialect: Dialect, prompts: PromptsConfig) -> str:
    """The one prompt that a query's candidates answer: the whole image, the region by its coordinates (METHOD §3.4)."""
    region = render_box(query.region, dialect, (query.width, query.height), region=True)
    return prompts.full.replace("{region}", region)


def requests_for(
    query: RegionQuery,
    image: Image.Image,
    dialect: Dialect,
    settings: DescriberConfig,
    prompts: PromptsConfig,
    seed: int,
) -> list[Asked]:
    """What a query's model is asked (METHOD §3.1–3.3): ``samples`` of each kind, each with its own seed.

    Args:
        query: The region query.
        image: The whole image, RGB, of the query's size.
        dialect: How the model writes boxes.
        settings: Samples of each kind, and how much the crop is grown.
        prompts: Their texts.
        seed: The experiment's.
    """
    size_wh = query.width, query.height
    whole: Box = (0.0, 0.0, float(query.width), float(query.height))
    window = crop_window(query.region, size_wh, settings.crop_factor)
    crop = cut(image, window)
    shown: dict[PromptKind, tuple[Image.Image, Box, str]] = {
        "full": (image, whole, training_prompt(query, dialect, prompts)),
        "crop": (crop, window, prompts.crop),
        "crop_objects": (crop, window, _with_objects(query, window, crop.size, dialect, prompts)),
    }
    asked = []
    for kind in PROMPT_KINDS:
        picture, part, text = shown[kind]
        for number in range(getattr(settings.samples, kind)):
            own_seed = stable_hash(seed, "describe", query.query_id, kind, str(number)) >> 1
            request = DescribeRequest(picture, text, own_seed, query, part)
            asked.append(Asked(f"{query.query_id}/{kind}{number}", kind, request))
    return asked


def _with_objects(query: RegionQuery, window: Box, size_wh: Size, dialect: Dialect, prompts: PromptsConfig) -> str:
    lines = []
    for index, item in enumerate(query.inside, start=1):
        x1, y1, x2, y2 = clip(shift(item.box, window), size_wh).tolist()
        line = prompts.object_line.replace("{index}", str(index)).replace("{category}", item.category)
        lines.append(line.replace("{box}", render_box((x1, y1, x2, y2), dialect, size_wh)))
    return prompts.crop_objects.replace("{objects}", prompts.object_join.join(lines))


def read_answer(asked: Asked, answer: str, describer: Describer) -> Candidate | str:
    """The answer as a candidate, its boxes in pixels of the original image (METHOD §3.4), or the reason to drop it.

    Reasons: ``empty_answer`` (nothing but white space), ``repeats_prompt`` (the prompt, or a beginning of it, is all
    that was said), ``not_renderable`` (its words would be read as coordinates in the model's dialect).
    """
    request, dialect = asked.request, describer.dialect
    query, window = request.query, request.window
    if query is None or window is None:
        raise ValueError("a candidate's request needs its query and the window that was shown")
    answer = without_surrogates(answer)
    said = answer.strip()
    if not said:
        return "empty_answer"
    if said == request.prompt.strip() or (len(said) > 20 and request.prompt.strip().startswith(said)):
        return "repeats_prompt"
    parsed = parse(answer, dialect, request.image.size)
    spans = tuple(
        Span(span.phrase, span.start, span.end, tuple(unshift(box, window) for box in span.boxes))
        for span in parsed.spans
    )
    try:
        text = render(GroundedText(parsed.plain_text, spans), dialect, (query.width, query.height))
    except GroundingError:
        return "not_renderable"
    return Candidate(
        candidate_id=asked.candidate_id,
        query_id=query.query_id,
        prompt_kind=asked.kind,
        raw_text=answer,
        text=text,
        plain_text=parsed.plain_text,
        spans=spans,
        problems=tuple(str(problem) for problem in parsed.problems),
        seed=request.seed,
        model=describer.name,
        dialect=dialect.spec,
    )


def make_candidates(tables: Mapping[str, pa.Table], config: Config, describer: Describer) -> StageOutput:
    """The stage: a shard of `spr.records.schemas.REGIONS` → a shard of `spr.records.schemas.CANDIDATES`.

    Drops images that can't be read (reasons of `spr.core.images`), candidates for the reasons of `read_answer`, and repeats
    of an earlier candidate's text (``repeats_candidate``, METHOD §3.3).
    """
    settings = _settings(config)
    candidates: list[Candidate] = []
    images: list[tuple[str, str]] = []
    dropped: list[tuple[str, str]] = []
    for group in _groups(tables["regions"], config, describer, settings, images):
        answers = describer.describe([asked.request for asked in group])
        texts: set[tuple[str, str]] = set()
        for asked, answer in zip(group, answers, strict=True):
            made = read_answer(asked, answer, describer)
            if isinstance(made, Candidate) and (made.query_id, made.text) in texts:
                made = "repeats_candidate"
            if isinstance(made, str):
                dropped.append((asked.candidate_id, made))
            else:
                texts.add((made.query_id, made.text))
                candidates.append(made)
    drops = [dropped_table(NAME, "image", images), dropped_table(NAME, "candidate", dropped)]
    return StageOutput(to_table(candidates, Candidate), pa.concat_tables(drops))


def process(tables: Mapping[str, pa.Table], config: Config, unfinished: Path | None = None) -> StageOutput:
    """`make_candidates` with the config's describer, whose answers are kept in ``unfinished`` as they come."""
    settings = _settings(config)
    describer = load_describer(settings)
    return make_candidates(tables, config, KeptAnswers(describer, unfinished, settings) if unfinished else describer)


def _settings(config: Config) -> DescriberConfig:
    if config.describer is None:
        fix = "give describer.model, or describer.backend=fake to try the pipeline without weights"
        raise ConfigError(f"Stage `{NAME}` needs a describer", got="a config without `describer`", fix=fix)
    return config.describer


def _groups(
    regions: pa.Table, config: Config, describer: Describer, settings: DescriberConfig, images: list[tuple[str, str]]
) -> Iterator[Sequence[Asked]]:
    """The requests of at most `QUERIES_AT_ONCE` queries at a time; notes images that can't be read."""

    def each() -> Iterator[list[Asked]]:
        for decoded in decode_ahead(from_table(regions, RegionQuery), config.annotations):
            if isinstance(decoded.image, ImageProblem):
                images.append((decoded.queries[0].image_id, decoded.image.reason))
                continue
            for query in decoded.queries:
                yield requests_for(query, decoded.image, describer.dialect, settings, config.prompts, config.seed)

    for group in in_groups(each(), QUERIES_AT_ONCE, _pixels):
        yield [asked for query in group for asked in query]


def _pixels(asked: Sequence[Asked]) -> int:
    # The image and its crop are each shown to several requests.
    images = {id(one.request.image): one.request.image for one in asked}
    return sum(image.width * image.height for image in images.values())


def _models(_: Config) -> tuple[str, ...]:
    return ("describer",)


STAGE = Stage(
    NAME,
    version=1,
    unit="candidates",
    sections=("seed", "prompts"),
    process=process,
    inputs=("regions",),
    model_sections=_models,
    keeps_unfinished=True,
)
