"""Region queries → candidates: several descriptions per query, all as answers to one training prompt (paper, Sec. 3.2).

The model is asked easier questions than the training prompt: about the crop, and about the crop with its objects
listed. Such an answer is mapped back to the original image and written again in the model's dialect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from spr.config import Config, PromptsConfig
from spr.config.describer import DropOrKeep, ObjectOrder, SamplesConfig
from spr.core.boxes import clip
from spr.core.errors import ConfigError
from spr.core.images import ImageSource
from spr.core.progress import counted
from spr.core.randomness import stable_hash
from spr.core.reasons import DROP_REASONS
from spr.core.terminal import count_text
from spr.core.views import crop_window, cut, shift
from spr.grounding import DIALECTS, Dialect, final_answer, get_dialect, map_to_image, parse, render, render_box
from spr.grounding.coding import IMPLAUSIBLE_SCALE, OUTSIDE, Numbers
from spr.grounding.markup import SPECIAL
from spr.grounding.names import readable_names
from spr.grounding.text import without_surrogates
from spr.models.protocols import Answer, Describer, DescribeRequest, check_answer
from spr.models.registry import load_describer
from spr.pipeline.answers import AnswerJournal
from spr.pipeline.decoding import decode_ahead, in_groups
from spr.pipeline.stage import Drops, OnDrop, Stage
from spr.records import Box, Candidate, PreferencePair, PromptKind, RegionObject, RegionQuery, Size
from spr.records.schemas import CANDIDATES, from_table, to_table
from spr.runs.store import ShardEntry, StageOutput, StageStore, read_table

NAME = "candidates"

_CONTROL_AT_END = re.compile(rf"^\s*+{SPECIAL.pattern}|{SPECIAL.pattern}\s*+$")

_PLACEHOLDER = re.compile(r"\{(?:index|category|box)\}")


class CandidateRequest(NamedTuple):
    """A request to the model, with the id and the prompt kind of the candidate that its answer becomes."""

    candidate_id: str
    kind: PromptKind
    request: DescribeRequest


def describe_regions(
    queries: Iterable[RegionQuery],
    describer: Describer,
    images: ImageSource,
    *,
    samples: SamplesConfig | None = None,
    crop_factor: float = 1.5,
    object_order: ObjectOrder = "reading",
    truncated: DropOrKeep = "drop",
    malformed_crops: DropOrKeep = "drop",
    prompts: PromptsConfig | None = None,
    seed: int = 0,
    on_drop: OnDrop = lambda *_: None,
) -> list[Candidate]:
    """Sample several descriptions of each region (paper, Sec. 3.2).

    Args:
        queries: The region queries.
        describer: The model; `spr.models.fakes.FakeDescriber` needs no weights.
        images: Where the images are.
        samples: Number of descriptions per query and prompt kind; None uses two of each.
        crop_factor: The crop is the region enlarged by this factor about its centre.
        object_order: Order of the objects listed in ``crop_objects`` prompts, see `listed_objects`.
        truncated: Whether answers that the token limit cut are dropped or kept.
        malformed_crops: Whether answers about a crop are dropped or kept if they contain unreadable coordinates.
        prompts: The prompts; None uses the defaults.
        seed: Seed of the sampling; each request's own seed is derived from it and the candidate's id.
        on_drop: Called for images that can't be used, for answers that `read_answer` refuses, and for answers with the
            text of an earlier candidate of their query (``repeats_candidate``).

    Returns:
        The candidates, in the order of the queries' images; boxes are in pixels of the original images.
    """
    samples, prompts = samples or SamplesConfig(), prompts or PromptsConfig()
    requests = (
        requests_for(query, image, describer.dialect, samples, crop_factor, prompts, seed, object_order=object_order)
        for query, image in decode_ahead(queries, images, on_drop)
    )
    candidates: list[Candidate] = []
    for groups in in_groups(requests, _pixels):
        batch = [request for group in groups for request in group]
        with counted(len(batch)):
            answers = describer.describe([item.request for item in batch])
        seen: set[tuple[str, str]] = set()
        for item, answer in zip(batch, answers, strict=True):
            candidate = read_answer(
                item, check_answer(answer, describer), describer, truncated=truncated, malformed_crops=malformed_crops
            )
            if isinstance(candidate, Candidate) and (candidate.query_id, candidate.text) in seen:
                candidate = "repeats_candidate"
            if isinstance(candidate, str):
                on_drop("candidate", item.candidate_id, candidate)
            else:
                seen.add((candidate.query_id, candidate.text))
                candidates.append(candidate)
    return candidates


def training_prompt(query: RegionQuery | PreferencePair, dialect: Dialect, prompts: PromptsConfig) -> str:
    """The prompt of a preference pair: it is about the whole image and gives the region by its coordinates."""
    return region_prompt(query.region, (query.width, query.height), dialect, prompts)


def region_prompt(region: Box, size_wh: Size, dialect: Dialect, prompts: PromptsConfig) -> str:
    """The prompt for a region, xyxy in pixels, of an image of ``size_wh`` pixels."""
    return prompts.full.replace("{region}", render_box(region, dialect, size_wh, region=True))


def requests_for(
    query: RegionQuery,
    image: Image.Image,
    dialect: Dialect,
    samples: SamplesConfig,
    crop_factor: float,
    prompts: PromptsConfig,
    seed: int,
    *,
    object_order: ObjectOrder = "reading",
) -> list[CandidateRequest]:
    """The requests for a query: ``samples`` of each prompt kind, each with its own seed (paper, Sec. 3.2).

    ``image`` is the whole image, RGB, of the query's size. See `describe_regions` for the other arguments.
    """
    size_wh = query.width, query.height
    whole: Box = (0.0, 0.0, float(query.width), float(query.height))
    window = crop_window(query.region, size_wh, crop_factor)
    crop = cut(image, window)
    listed = listed_objects(query, object_order, seed)
    shown: dict[PromptKind, tuple[Image.Image, Box, str]] = {
        "full": (image, whole, training_prompt(query, dialect, prompts)),
        "crop": (crop, window, prompts.crop),
        "crop_objects": (crop, window, _prompt_with_objects(listed, window, crop.size, dialect, prompts)),
    }
    requests = []
    for kind, (picture, part, text) in shown.items():
        for number in range(getattr(samples, kind)):
            own_seed = stable_hash(seed, "describe", query.query_id, kind, str(number)) >> 1
            request = DescribeRequest(picture, text, own_seed, query, part)
            requests.append(CandidateRequest(f"{query.query_id}/{kind}{number}", kind, request))
    return requests


def listed_objects(query: RegionQuery, order: ObjectOrder, seed: int) -> tuple[RegionObject, ...]:
    """The objects inside the region in the order in which a prompt lists them.

    ``reading``: by left edge, then by top edge; ``id``: as annotated; ``shuffled``: by a hash of the seed and the id.
    """
    match order:
        case "reading":
            return tuple(sorted(query.inside, key=lambda item: item.box[:2]))
        case "id":
            return query.inside
        case "shuffled":
            hashes = {item.id: stable_hash(seed, "object order", query.query_id, item.id) for item in query.inside}
            return tuple(sorted(query.inside, key=lambda item: hashes[item.id]))


def _prompt_with_objects(
    objects: Sequence[RegionObject], window: Box, size_wh: Size, dialect: Dialect, prompts: PromptsConfig
) -> str:
    lines = []
    names = readable_names([item.category for item in objects])
    for index, (item, name) in enumerate(zip(objects, names, strict=True), start=1):
        x1, y1, x2, y2 = clip(shift(item.box, window), size_wh).tolist()
        box = render_box((x1, y1, x2, y2), dialect, size_wh)
        parts = {"{index}": str(index), "{category}": name, "{box}": box}
        lines.append(_fill(prompts.object_line, parts))
    return prompts.crop_objects.replace("{objects}", prompts.object_join.join(lines))


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Replace all placeholders at once: a part may contain the text of another placeholder."""
    return _PLACEHOLDER.sub(lambda match: parts[match[0]], template)


def _pixels(requests: Sequence[CandidateRequest]) -> int:
    # The image and its crop are each shared by several requests.
    images = {id(item.request.image): item.request.image for item in requests}
    return sum(image.width * image.height for image in images.values())


def read_answer(
    item: CandidateRequest,
    answer: Answer,
    describer: Describer,
    *,
    truncated: DropOrKeep = "drop",
    malformed_crops: DropOrKeep = "drop",
) -> Candidate | str:
    """Turn an answer into a candidate, an answer about the original image, or return why it is dropped.

    The text is what the model wrote after its reasoning, without control tokens at its ends. In an answer about a crop,
    the numbers are mapped to the original image, and nothing else changes (supplement, Sec. 1).

    The reasons: ``truncated_answer`` (the token limit cut it; unless ``truncated`` is ``keep``),
    ``unfinished_reasoning`` (only reasoning), ``empty_answer`` (only white space), ``repeats_prompt`` (nothing but the
    prompt or its beginning), ``box_not_mapped`` (an answer about a crop with coordinates that can't be read; unless
    ``malformed_crops`` is ``keep``, which leaves these as they are).
    """
    request, dialect = item.request, describer.dialect
    query, window = request.query, request.window
    if query is None or window is None:
        raise ValueError("a candidate's request needs its query and its window")
    if answer.truncated and truncated == "drop":
        return "truncated_answer"
    raw_text = without_surrogates(answer.text)
    final = final_answer(raw_text)
    if final.problem is not None:
        return "unfinished_reasoning"
    text = _without_control_tokens(final.text)
    stripped, prompt = text.strip(), request.prompt.strip()
    if not stripped:
        return "empty_answer"
    if stripped == prompt or (len(stripped) > 20 and prompt.startswith(stripped)):
        return "repeats_prompt"
    grounded = parse(text, dialect, request.image.size)
    problems = tuple(str(problem) for problem in grounded.problems)
    if item.kind != "full":
        if grounded.source is not None and grounded.source.has_unread and malformed_crops == "drop":
            return "box_not_mapped"
        grounded = map_to_image(grounded, window[:2], (query.width, query.height), keep_unread=True)
        text = render(grounded, dialect, (query.width, query.height))
    return Candidate(
        candidate_id=item.candidate_id,
        query_id=query.query_id,
        prompt_kind=item.kind,
        raw_text=raw_text,
        text=text,
        plain_text=grounded.plain_text,
        spans=grounded.spans,
        problems=problems,
        finish_reason=answer.finish_reason,
        seed=request.seed,
        model=describer.name,
        dialect=dialect.spec,
    )


def _without_control_tokens(text: str) -> str:
    """The text without tokens such as ``</s>`` at its ends, which some servers leave there."""
    while (match := _CONTROL_AT_END.search(text)) is not None:
        text = text[: match.start()] + text[match.end() :]
    return text


def process(
    tables: Mapping[str, pa.Table],
    config: Config,
    unfinished: Path | None = None,
    *,
    describer: Describer | None = None,
) -> StageOutput:
    """`describe_regions` on a shard of the table `regions`; ``unfinished`` is the file of an `AnswerJournal`."""
    settings = config.describer
    if settings is None:
        fix = "set describer.model, or describer.backend=fake to try the pipeline without weights"
        raise ConfigError(f"Stage `{NAME}` needs a describer", got="a config without `describer`", fix=fix)
    describer = describer or load_describer(settings)
    drops = Drops()
    candidates = describe_regions(
        from_table(tables["regions"], RegionQuery),
        AnswerJournal(describer, unfinished, settings) if unfinished else describer,
        config.annotations.image_source,
        samples=settings.samples,
        crop_factor=settings.crop_factor,
        object_order=settings.object_order,
        truncated=settings.truncated,
        malformed_crops=settings.malformed_crops,
        prompts=config.prompts,
        seed=config.seed if settings.seed is None else settings.seed,
        on_drop=drops.add,
    )
    return StageOutput(to_table(candidates, Candidate), drops.table(NAME, "image", "candidate"))


def _work(config: Config) -> tuple[int, str]:
    samples = SamplesConfig() if config.describer is None else config.describer.samples
    return samples.full + samples.crop + samples.crop_objects, "answers"


def scale_hint(store: StageStore, shards: Sequence[ShardEntry]) -> str | None:
    """What to check if numbers fit another scale than the dialect's; None if they do not.

    It is shown for any box with numbers from 0 to 1 in a dialect of larger ones, and if boxes are out of range in at
    least half as many cases as there are candidates. No box is rescaled.
    """
    small = large = rows = 0
    spec = ""
    for shard in shards:
        table = read_table(store.part(shard.index), ["problems", "dialect"])
        if len(table):
            problems = pc.list_flatten(table["problems"])
            small += pc.sum(pc.match_substring(problems, f": {IMPLAUSIBLE_SCALE}"), min_count=0).as_py()
            large += pc.sum(pc.match_substring(problems, f": {OUTSIDE}"), min_count=0).as_py()
            rows, spec = rows + len(table), table["dialect"][0].as_py()
    if not small and (not large or 2 * large < rows):
        return None
    own = get_dialect(spec)
    same = [item for item in DIALECTS.values() if isinstance(item.markup, type(own.markup)) and item.key != own.key]
    other = [item.key for item in same if isinstance(item.coding, Numbers) and (item.coding.units == 1) == bool(small)]
    what = f"numbers from 0 to 1 ({IMPLAUSIBLE_SCALE})" if small else "numbers out of range"
    check = f"did the model write `{'` or `'.join(other)}`?" if other else "no other built-in dialect writes these"
    return f"{count_text(small or large, 'boxes')} in dialect `{spec}` with {what}; check describer.dialect: {check}"


STAGE = Stage(
    NAME,
    version=3,
    unit="candidates",
    kind="candidate",
    schema=CANDIDATES,
    process=process,
    reasons=DROP_REASONS[NAME],
    inputs=("regions",),
    sections=("seed", "prompts"),
    models=("describer",),
    keeps_unfinished=True,
    hint=scale_hint,
    work=_work,
)
