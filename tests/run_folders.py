"""What tests read from run folders, the config sections of the fake models, and work for other processes."""

from spr.core.progress import advance
from spr.runs.store import StageStore

FAKES = {section: {"backend": "fake"} for section in ("describer", "scorer", "detector")}


def rows(out, stage):
    """The rows of a stage's table."""
    return [row for table in StageStore(out / stage).tables() for row in table.to_pylist()]


def files(out):
    """The content of every file of a run by its name, except for its log and its lock."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in ("log.jsonl", ".lock")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def table_files(out):
    """Those of `files` that hold a stage's rows: a second run must write the same bytes."""
    return {name: content for name, content in files(out).items() if name.endswith(".parquet")}


def advance_times(number: int) -> int:
    """Work for another process, which can import this module however pytest was started."""
    for _ in range(number):
        advance()
    return number
