"""Hooks of MkDocs: pages and tables that are made from the code, and the repository's address from pyproject.toml.

Made are `commands/NAME.md`, a page per command of `spr`; `config-fields.md`, a table per config section; the tables
that a page asks for with a line `<!-- table: NAME -->`, by the functions in `TABLES`; and the files of examples/ that a
page shows with a line `<!-- example: FILE -->`.
"""

import re
import tomllib
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import typer
from mkdocs.structure.files import File

from spr.cli import app
from spr.config import load_config, presets
from spr.config.reference import sections
from spr.models.custom_models import class_name
from spr.models.families import FAMILIES
from spr.models.family import ATTENTION, LLAMA_LINEAR
from spr.workflows import model_sizes


def on_config(config):
    """Add the generated pages to the navigation, and links to the repository once its owner is filled in."""
    project = tomllib.loads((Path(config.config_file_path).parent / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"]["Repository"]
    if "/OWNER/" not in repository:
        config.repo_url, config.edit_uri = repository, "edit/main/docs/"
    pages = [{f"spr {name}": f"commands/{name}.md"} for name in commands()]
    (reference,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.insert(0, {"Commands": [{"Overview": "commands/index.md"}, *pages]})
    return config


def on_files(files, config):
    """Add the generated pages."""
    for name, content in generated_pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_post_build(config):
    """Write the search index as a script, too: without it, pages that are opened from disk end with an error."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    if index.is_file():
        index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")


def on_page_markdown(markdown, **_):
    """Fill in the tables and examples that a page asks for."""
    markdown = re.sub(r"^<!-- example: (\S+) -->$", lambda match: _example(match[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- table: (\w+) -->$", lambda match: "\n".join(TABLES[match[1]]()), markdown, flags=re.MULTILINE)


def _example(name):
    """A file of examples/ as a block of code."""
    text = (Path(__file__).parents[1] / "examples" / name).read_text(encoding="utf-8")
    return f"```{'yaml' if name.endswith('.yaml') else 'bash'}\n{text}```"


def commands():
    """The commands of `spr` by name, in the order of `spr --help`."""
    group = typer.main.get_command(app)
    return {name: group.get_command(None, name) for name in group.list_commands(None)}


def generated_pages():
    """The generated pages by path below docs/."""
    rows = [f"| [`spr {name}`]({name}.md) | {_summary(command)} |" for name, command in commands().items()]
    intro = "# Commands\n\nEach command shows its options with `--help`. These pages are made from the same source.\n"
    overview = "\n".join([intro, "| command | what it does |", "|---|---|", *rows, ""])
    pages = {f"commands/{name}.md": "\n".join(_command_page(f"spr {name}", each)) for name, each in commands().items()}
    return {"commands/index.md": overview, **pages, "config-fields.md": "\n".join(_fields_page())}


def _command_page(name, command, level=1):
    yield f"{'#' * level} {name}\n"
    yield _text(command.help)
    subcommands = getattr(command, "list_commands", None)
    if subcommands is not None:
        yield ""
        for sub in subcommands(None):
            yield from _command_page(f"{name} {sub}", command.get_command(None, sub), 2)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    needed = [f"{p.opts[0]} {_kind(p).upper()}" for p in options if p.required]
    yield f"\n```text\n{' '.join([name, *map(_shown, arguments), *needed, '[OPTIONS]'])}\n```\n"
    for title, parameters in (("argument", arguments), ("option", options)):
        if parameters:
            yield f"| {title} | type | default | meaning |\n|---|---|---|---|"
            yield from map(_parameter_row, parameters)
            yield ""


def _shown(argument):
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _parameter_row(parameter):
    names = ", ".join(f"`{flag}`" for flag in parameter.opts + parameter.secondary_opts)
    if parameter.param_type_name == "argument":
        names = f"`{_shown(parameter)}`"
    text, told = _default_in(getattr(parameter, "help", None) or "")
    value = parameter.default
    if told is None:
        none = value is None or value is False or value in ((), [])
        told = "required" if parameter.required else "" if none else f"`{value}`"
    return f"| {names} | {_cell(_kind(parameter))} | {_cell(told)} | {_cell(text)} |"


def _default_in(text):
    """A help text without its own `(default: …)`, and that default if it has one."""
    match = re.search(r"\s*\(default: (.*?)\)$", text)
    return (text[: match.start()], match[1]) if match else (text, None)


def _kind(parameter):
    kind, words = parameter.type_descriptor.annotation, {str: "text", int: "integer", float: "number", bool: "flag"}
    bounds = [f"≥ {parameter.min:g}"] if parameter.min is not None else []
    bounds += [f"≤ {parameter.max:g}"] if parameter.max is not None else []
    several = get_origin(kind) in (list, tuple)
    if several or get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    name = ", ".join(f"`{choice}`" for choice in get_args(kind)) if get_origin(kind) is Literal else words.get(kind)
    return ", ".join([name or "path", *bounds, *(["several"] if several else [])])


def _fields_page():
    yield "# Config fields\n"
    yield (
        "All fields of all sections, with the type, the default, the meaning, and where the default is from: a section "
        "of the paper or of its supplement, or our choice where both leave it open ([paper index](paper.md)). Fields "
        "without a source, such as paths and devices, are not about the method. `spr config SECTION` prints the same.\n"
    )
    for section in sections():
        yield f"## {section.name or 'Outside of sections'}\n"
        yield f"{section.meaning}\n"
        yield "| field | type | default | meaning | source |\n|---|---|---|---|---|"
        for field in section.fields:
            cells = (f"`{field.name}`", field.type, f"`{field.default}`", field.meaning, field.source)
            yield f"| {' | '.join(map(_cell, cells))} |"
        yield ""


def memory_table():
    """GB of device memory for each shipped config, with and without checkpointing and 4-bit weights."""
    yield "| config | weights | describe 16 | train | with `gradient_checkpointing` | and with 4-bit weights |"
    yield "|---|---|---|---|---|---|"
    for name, config, shape in _planned():
        training, cells = config.training, [shape.weights(config.training.dtype)]
        cells.append(model_sizes.describing_memory(shape, config.describer))
        for change in ({"gradient_checkpointing": False}, {"gradient_checkpointing": True}):
            cells.append(model_sizes.training_memory(shape, training.model_copy(update=change)))
        cells.append(model_sizes.training_memory(shape, training.model_copy(update={**change, "load_in_4bit": True})))
        used = 3 if training.gradient_checkpointing else 2
        shown = [f"**{size / 1e9:.0f}**" if place == used else f"{size / 1e9:.0f}" for place, size in enumerate(cells)]
        yield f"| `{name}` | {' | '.join(shown)} |"


def disk_table():
    """GB on disk and sizes of adapters for each shipped config."""
    yield "| config | download | adapter | adapter and two checkpoints | vision cache of 10,000 pairs |"
    yield "|---|---|---|---|---|"
    for name, config, shape in _planned():
        others = sum(model_sizes.model_bytes(section) or 0 for section in (config.scorer, config.detector))
        sizes = [shape.weights("auto") + others, 4 * shape.adapter(config.training)]
        sizes += [model_sizes.checkpoint_bytes(shape, config.training)]
        sizes += [model_sizes.vision_cache_bytes(shape, config.training, 10_000)]
        yield f"| `{name}` | {' | '.join(f'{size / 1e9:.1f}' for size in sizes)} |"


def time_table():
    """Hours for 10,000 images and one epoch on each card."""
    cards = list(model_sizes.CARDS)
    yield f"| config | step | {' | '.join(cards)} |\n|---|---|{'---|' * len(cards)}"
    for name, config, shape in _planned():
        per_image = sum(count for _, count in config.describer.samples)
        batches = 10_000 * config.regions.per_image * per_image / config.describer.batch_size
        steps = 10_000 * config.regions.per_image / config.training.per_device_train_batch_size
        rows = {
            f"{per_image * config.regions.per_image} descriptions per image": [
                batches * model_sizes.describing_seconds(shape, config.describer, card) for card in cards
            ],
            "reference pass": [steps * model_sizes.reference_seconds(shape, config.training, card) for card in cards],
            "one epoch": [steps * model_sizes.step_seconds(shape, config.training, card) for card in cards],
        }
        for step, seconds in rows.items():
            yield f"| `{name}` | {step} | {' | '.join(f'{second / 3600:.1f} h' for second in seconds)} |"


def _planned():
    for name in presets():
        config = load_config(name)
        if config.describer.model in model_sizes.SHAPES:
            yield name, config, model_sizes.SHAPES[config.describer.model]


def families_table():
    """The entries of the family table."""
    yield "| models | `model_type` | dialect | adapters on | one sequence per pair | reasons | vLLM |"
    yield "|---|---|---|---|---|---|---|"
    layers = {LLAMA_LINEAR: "all linear layers", ATTENTION: "the attention"}
    for name, family in FAMILIES.items():
        shared = ("yes" if family.shared_prefix else "no") if family.trainable else ""
        listed = " ".join(f"`{part.rpartition('.')[2]}`" for part in family.target_modules)
        targets = layers.get(family.target_modules, listed) if family.trainable else "describes only"
        dialect = f"[`{family.dialect}`](dialects.md)"
        cells = [family.models, f"`{name}`", dialect, targets, shared, "can" if family.thinking else ""]
        yield f"| {' | '.join([*cells, family.vllm or ''])} |"


def classes_table():
    """The class of each family's models."""
    yield "| `model_type` | class |\n|---|---|"
    for name in FAMILIES:
        yield f"| `{name}` | `{class_name(name)}` |"


TABLES = {"memory": memory_table, "disk": disk_table, "time": time_table, "families": families_table}
TABLES |= {"classes": classes_table}


def _summary(command):
    return _cell(_text(command.help).split("\n\n")[0])


def _text(text):
    return re.sub(r"\n[ \t]+", "\n", (text or "").replace("\f", "\n")).strip()


def _cell(text):
    # A bar ends a cell, also in code; brackets and placeholders are not links or HTML.
    plain = " ".join(str(text).split()).replace("|", r"\|")
    parts = re.split(r"(`[^`]*`)", plain)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("[", r"\[") for part in parts)
