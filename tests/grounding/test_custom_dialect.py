"""A dialect of another package works wherever a built-in one does.

The package is a folder on the path, with the metadata that `pip install` would write. All commands run in processes of
their own, which look for entry points when they start.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import warm_python
from spr.core.errors import ConfigError, GroundingError
from spr.grounding import DIALECTS, Dialect, convert, get_dialect, parse, render
from spr.grounding.coding import Numbers
from spr.grounding.geometry import Relative
from spr.grounding.markup import NUMBER, Brackets, Tags

MODULE = """
from spr.grounding import Dialect
from spr.grounding.coding import Numbers
from spr.grounding.geometry import Relative
from spr.grounding.markup import NUMBER, Tags

CORNERS = Dialect(
    key="corners",
    model="My model",
    example="<obj>a dog</obj><at>50 75 150 100</at>",
    markup=Tags(("<obj>", "</obj>"), ("<at>", "</at>"), "{} {} {} {}", r"(N) (N) (N) (N)".replace("N", NUMBER)),
    coding=Numbers(units=500),
    geometry=Relative(),
    options=("padded",),
    region_suffix=" <here>",
    rec_prompt="Which corners has {expression}?",
    description_prompt="What is in {region}?",
    special_tokens="</?(?:obj|at)>",
)
"""
RUN = """
annotations: {path: DATA/instances.json, images: DATA/images, max_images: 6}
describer: {backend: fake, dialect: "corners:padded=true"}
scorer: {backend: fake}
detector: {backend: none}
"""


@pytest.fixture
def package(tmp_path):
    """A folder with a package that declares the dialect `corners`."""
    folder = tmp_path / "site"
    info = folder / "my_dialects-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "my_dialects.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-dialects\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spr.dialects]\ncorners = my_dialects:CORNERS\n")
    return folder


@pytest.fixture
def python(package):
    """Run Python with the package on the path, and return what it prints."""

    def call(*arguments, text=None):
        path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [*warm_python.start(), *map(str, arguments)],
            input=text,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_spr_text_and_spr_doctor_know_the_dialect_of_another_package(python):
    options = ("--to", "corners:padded=true", "--size", "1000x500")
    # Padded, the square has 250 px above the image: (75 + 250) · 500 / 1000 = 162.5, rounded to the even 162.
    assert python("-m", "spr", "text", "--from", "ferret", *options, text="a dog [100, 150, 300, 800]\n") == (
        "<obj>a dog</obj><at>50 162 150 325</at>\n"
    )
    assert "corners" in python("-m", "spr", "doctor")


def test_parse_render_and_convert_use_the_dialect_of_another_package(python):
    code = (
        "from spr.grounding import convert, get_dialect, parse, render, render_box\n"
        "size = (1000, 500)\n"
        "dialect = get_dialect('corners')\n"
        "grounded = parse(dialect.example, 'corners', size, strict=True)\n"
        "assert grounded.boxes == ((100.0, 75.0, 300.0, 100.0),)\n"
        "assert render(grounded, 'corners', size) == dialect.example\n"
        "assert convert(dialect.example, 'corners', 'qwen3_vl', size).startswith('[{')\n"
        "assert render_box(grounded.boxes[0], 'corners', size, region=True) == '<at>50 75 150 100</at> <here>'\n"
        "padded = get_dialect('corners', padded=True)\n"
        "assert padded.spec == 'corners:padded=true' and get_dialect(padded.spec) == padded != dialect\n"
        "from spr.models.model_dialect import is_grounding_token\n"
        "assert is_grounding_token('<at>') and not is_grounding_token('<here>')\n"
        "print('all hold')\n"
    )
    assert python("-c", code) == "all hold\n"


def test_a_run_its_export_and_its_evaluation_use_the_dialect_of_another_package(python, dataset, tmp_path):
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(RUN.replace("DATA", str(dataset.folder)))
    python("-m", "spr", "run", config, "--out", run)

    code = (
        "import sys, pyarrow.parquet as pq\n"
        "from spr.grounding import parse\n"
        "rows = pq.read_table(sys.argv[1]).to_pylist()\n"
        "assert {row['dialect'] for row in rows} == {'corners:padded=true'}\n"
        "assert all(row['spans'] and not row['problems'] and '<at>' in row['raw_text'] for row in rows)\n"
        "print(len(rows))\n"
    )
    assert int(python("-c", code, run / "candidates" / "part-00000.parquet")) > 10

    def export(*dialect):
        out = tmp_path / "-".join(("export", *dialect))
        python("-m", "spr", "export", run, "--format", "llava", "--out", out, *dialect)
        return "".join(path.read_text() for path in sorted(out.glob("*.json*")))

    assert "</at> <here>" in export()
    assert "<at>" in export("--dialect", "corners")
    assert "<at>" not in export("--dialect", "qwen3_vl")

    # The file alone, because the config of its run would give the question.
    regions = shutil.copy(run / "regions" / "part-00000.parquet", tmp_path)
    out = tmp_path / "description.json"
    fake = ("describer.backend=fake", "describer.dialect=corners")
    images = ("--images", dataset.images)
    python("-m", "spr", "evaluate", "description", *fake, "--annotations", regions, *images, "--out", out)
    protocol = json.loads(out.read_text())["protocol"]
    assert (protocol["dialect"], protocol["prompt"]) == ("corners", "What is in {region}?")


def test_the_default_questions_and_the_notice_about_servers_come_from_the_entry():
    from spr.evaluation.expressions import Expressions
    from spr.evaluation.tasks.description import Description, Regions
    from spr.evaluation.tasks.rec import Rec

    def default_prompt(task, dialect):
        none = {"rec": Expressions((), (), (), np.zeros((0, 4)), (), ()), "description": Regions([])}
        prompt, _ = {"rec": Rec(), "description": Description()}[task].questions(none[task], dialect, "")
        return prompt

    dialect = Dialect(
        "corners",
        "My model",
        "",
        Brackets("{}, {}, {}, {}"),
        Numbers(),
        rec_prompt="Which corners has {expression}?",
    )
    assert default_prompt("rec", dialect) == "Which corners has {expression}?"
    assert default_prompt("description", dialect) == default_prompt("description", get_dialect("ferret"))


def test_a_dialect_registered_in_this_process_works_and_its_name_is_checked():
    markup = Tags(("<o>", "</o>"), ("<b>", "</b>"), "{} {} {} {}", rf"({NUMBER}) ({NUMBER}) ({NUMBER}) ({NUMBER})")
    mine = Dialect("mine", "Mine", "<o>a dog</o><b>1 2 3 4</b>", markup, Numbers(), Relative(padded=True))
    with pytest.raises(GroundingError, match="Unknown dialect"):
        get_dialect("mine")
    assert (mine.spec, parse(mine.example, mine, (10, 10)).plain_text) == ("mine", "a dog")
    DIALECTS.register("mine", mine)
    try:
        assert get_dialect("mine") is mine
        assert convert("a dog [0, 0, 500, 500]", "ferret", "mine", (100, 100)) == "<o>a dog</o><b>0 0 500 500</b>"
        assert render(parse(mine.example, "mine", (100, 100)), "mine", (100, 100)) == mine.example
        with pytest.raises(GroundingError, match="`mine` has no option `padded`"):
            get_dialect("mine:padded=false")
        with pytest.raises(ConfigError, match="already a dialect"):
            DIALECTS.register("mine", mine)
    finally:
        DIALECTS.unregister("mine")
    DIALECTS.register("theirs", mine)
    try:
        with pytest.raises(GroundingError, match="another name"):
            get_dialect("theirs")
    finally:
        DIALECTS.unregister("theirs")


def test_the_dialect_in_the_docs_reads_and_writes_its_example():
    page = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(# my_package/dialects\.py\n.*?)```", page, re.DOTALL)
    names: dict[str, Dialect] = {}
    exec(block, names)  # noqa: S102 - the page's own code
    mine = names["CORNERS"]
    grounded = parse(mine.example, mine, (640, 480), strict=True)
    assert (grounded.plain_text, grounded.boxes) == ("a dog", ((64.0, 72.0, 192.0, 96.0),))
    assert render(grounded, mine, (640, 480)) == mine.example
    assert mine.with_options(padded=True).spec == "corners"  # it is not registered here, so nothing differs from it
