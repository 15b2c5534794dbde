"""Kill every command that writes, again and again, and check that nothing is lost and no byte changes.

    python tests/kills.py --kills 200

Each kill is a SIGKILL, at a random time or right before a random file operation (open for writing, rename, removal,
sync …). Afterwards the user's files must be unchanged, and the same command, run again, must succeed and leave the same
bytes as an undisturbed run, and no temporary files. Times, speeds and the logs that hold them are not compared.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from pyarrow import parquet

TIMES = re.compile(
    rb"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)? UTC|(?<=class=\"took\">)[\d.]+ s"
    rb"|[\d.]+ s\. [\d,]+ tokens per second at the end\. [\d.]+ GiB"
)
MINE = {
    "notes.txt": "mine",
    ".config.yaml.1.tmp": "my editor's",
    "new/thesis.tex": "mine",
    "new/.report.1.old": "mine",
    "new/result.json.backup": "mine",
}
IN_RUN = {
    "run/objects/part-of-my-model.stl": "mine",
    "run/objects/dropped-notes.txt": "mine",
    "run/.notes.1.tmp": "mine",
    "run/training/checkpoints/notes.txt": "mine",
    "run/report/notes.txt": "mine",
}
FAKES = {section: {"backend": "fake"} for section in ("scorer", "detector")}
# Name: (state that it starts from, arguments). The states: data; begun, a run with objects and regions; run, with pairs
# and an earlier report; trained, with an adapter and two results; published, with weights to convert.
COMMANDS = {
    "scenes": ("data", "scenes -n 6 --out new/scenes"),
    "lvis-questions": ("data", "lvis-questions --annotations lvis.json -n 2 --out new/questions.jsonl"),
    "run": ("data", "run config.yaml --out new/run"),
    "run --workers": ("data", "run config.yaml --workers 2 --until regions --out new/run"),
    "run, begun": ("begun", "run config.yaml --out run"),
    "show --draw": ("begun", "show run/regions --draw new/sheet.png"),
    "export trl": ("run", "export run --format trl --out new/export"),
    "export llava": ("run", "export run --format llava --out new/export"),
    "report": ("run", "report run --out new/report"),
    "report again": ("run", "report run"),
    "evaluate answers": ("data", "evaluate pope --annotations pope.jsonl --predictions a.jsonl --out new/result.json"),
    "train": ("run", "train config.yaml --out run"),
    "merge": ("trained", "merge run --out new/merged"),
    "evaluate model": (
        "trained",
        "evaluate description --annotations run --model embedded/describer --adapter run/adapter --out new/result.json",
    ),
    "compare": ("trained", "compare a.json b.json --out new/comparison.json"),
    "convert ferret": ("published", "convert ferret --base parts/vicuna --delta parts/delta --out new/ferret"),
    "quickstart": ("data", "quickstart --scenes 10 --held-out 10 --out new/quickstart"),
    "rounds": (
        "data",
        "rounds config.yaml describer.backend=hf describer.samples.crop=0 "
        "annotations.holdout=0.4 annotations.max_images=12 annotations.min_area=60 --n 2 --out new/rounds",
    ),
}
STATES = {
    "begun": ["run config.yaml --until regions --out run"],
    "run": ["run config.yaml --out run", "report run --max-pairs 1"],
    "trained": [
        "train config.yaml --out run",
        *(f"evaluate pope --annotations pope.jsonl --predictions {name}.jsonl --out {name}.json" for name in "ab"),
    ],
}
# Names of files, and their keys or columns that hold times.
DEPENDS_ON_TIME = {
    "finished.json": ("seconds", "last", "values"),
    "checkpoint.json": ("seconds", "last", "values"),
    "metrics.json": ("seconds",),
    "table.json": ("seconds",),
    "inputs.json": ("mtime_ns",),
    "images.parquet": ("mtime_ns",),
}
TINY_FERRET = Path(__file__).parent / "models" / "ported" / "ferret" / "conftest.py"
IMPORTED = ["pandas", "tokenizers", "spr.cli", "spr.embedded.scenes", "spr.evaluation.tasks.pope", "spr.exports.llava"]
IMPORTED += ["spr.models.fakes", "spr.report.page", "spr.report.contact_sheet", "spr.pipeline.runner"]
IMPORTED += [f"spr.pipeline.{stage}" for stage in ("objects", "regions", "describe", "score", "refine", "pair")]
LIGHT = ["scenes", "run", "run, begun", "show --draw", "export llava", "report again", "evaluate answers"]


class Place:
    """A folder in which commands run, always at the same path, and the states that they start from."""

    def __init__(self, folder: Path) -> None:
        self.work, self.states = folder / "work", folder / "states"
        self.work.mkdir()
        run_command("scenes -n 12 --out data", self.work)
        # The answers are made up; the model is trained on them.
        describer = {"backend": "fake", "model": "embedded/describer"}
        training = {"device": "cpu", "dtype": "float32", "save_steps": 1, "max_steps": 3, "vision_cache": "disk"}
        training["per_device_train_batch_size"] = 2
        config = {
            "annotations": {"path": "data/instances.json", "images": "data/images", "max_images": 6, "crowds": "drop"},
            "describer": describer,
            **FAKES,
            "scoring": {"ground_truth": "annotations"},
            "training": training,
            "shard_rows": 3,
        }
        (self.work / "config.yaml").write_text(json.dumps(config))
        questions = [
            {"question_id": k, "image": f"{k}.jpg", "text": "Is there a cat?", "label": "yes"} for k in range(9)
        ]
        write_lines(self.work / "pope.jsonl", questions)
        for name, said in (("a", "yes"), ("b", "no")):
            write_lines(self.work / f"{name}.jsonl", [{"id": k, "answer": said} for k in range(9)])
        coco = json.loads((self.work / "data" / "instances.json").read_text())
        for image in coco["images"]:
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for category in coco["categories"]:
            category |= {"synonyms": [category["name"]], "frequency": "f"}
        (self.work / "lvis.json").write_text(json.dumps(coco))
        self.mine = dict(MINE)
        self._put()
        self.keep("data")

    def _put(self) -> None:
        for name, text in self.mine.items():
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).write_text(text)

    def keep(self, state: str) -> None:
        shutil.copytree(self.work, self.states / state)

    def make(self, state: str) -> None:
        """Make a state, unless it exists."""
        if (self.states / state).is_dir():
            return
        before = {"begun": "data", "run": "data", "trained": "run", "published": "data"}[state]
        self.make(before)
        self.reset(before)
        for arguments in STATES.get(state, ()):
            print(f"once: spr {arguments}")
            run_command(arguments, self.work)
        if state == "published":
            code = f"import runpy, pathlib; tiny = runpy.run_path({str(TINY_FERRET)!r})"
            code += "; tiny['save_parts'](pathlib.Path('parts'))"
            subprocess.run([sys.executable, "-c", code], cwd=self.work, check=True)
        for name, text in IN_RUN.items():
            if (self.work / name).parents[0].is_dir() or (name.startswith("run/training") and state == "trained"):
                (self.work / name).write_text(text)
        self.keep(state)

    def reset(self, state: str) -> None:
        """Bring the folder into a state."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.states / state, self.work, symlinks=True)

    def users_files(self, state: str) -> dict[str, bytes]:
        folder = self.states / state
        return {name: (folder / name).read_bytes() for name in (*MINE, *IN_RUN) if (folder / name).is_file()}

    def damaged(self, state: str) -> list[str]:
        """The user's files that are not as they were."""
        return [
            name
            for name, data in self.users_files(state).items()
            if not (self.work / name).is_file() or (self.work / name).read_bytes() != data
        ]

    def content(self) -> dict[str, bytes]:
        """Every file and folder without what depends on the time."""
        found = {}
        for path in sorted(self.work.rglob("*")):
            name = str(path.relative_to(self.work))
            if path.is_dir():
                found[name] = b"a folder"
            elif path.name not in ("log.jsonl", ".lock"):
                found[name] = TIMES.sub(b"", path.read_bytes())
            dropped = DEPENDS_ON_TIME.get(path.name, ())
            # The quickstart generates its scenes, so the times of the files differ as well.
            if dropped and ("mtime_ns" not in dropped or name.startswith("new/quickstart/")):
                if path.suffix == ".parquet":
                    found[name] = json.dumps(parquet.read_table(path).drop_columns(dropped).to_pylist()).encode()
                else:
                    found[name] = json.dumps(without(json.loads(path.read_bytes()), dropped)).encode()
        return found


def without(content: object, keys: tuple[str, ...]) -> object:
    """JSON content without these keys, at any depth."""
    if isinstance(content, dict):
        return {key: without(value, keys) for key, value in content.items() if key not in keys}
    return [without(value, keys) for value in content] if isinstance(content, list) else content


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_command(arguments: str, folder: Path, *, after: float | None = None, before: int | None = None):
    """Run a command in a child; returns its exit code (negative: the signal), file operations and seconds.

    ``after`` kills it after so many seconds, ``before`` right before that file operation.
    """
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            for stream in (0, 1):
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)
            errors = os.open(folder.parent / "stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(errors, 2)
            if "torch" in sys.modules:  # in the child: a thread pool set before a fork may meet a race in it
                sys.modules["torch"].set_num_threads(1)
            code = work(arguments.split(), str(folder), before, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        operations = int(file.read() or 0)
    code = os.waitstatus_to_exitcode(status)
    if code and after is None and before is None:
        raise SystemExit(f"`spr {arguments}` failed: {(folder.parent / 'stderr').read_text()[-3000:]}")
    return code, operations, time.monotonic() - started


def work(arguments: list[str], root: str, last: int | None, writer: int) -> int:
    """Run a command line, counting its file operations in ``root``."""
    from spr import cli

    count = 0

    def operation() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, values: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
        changes = changes or (event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        inside = isinstance(values[0], str | os.PathLike) and str(Path.cwd() / values[0]).startswith(root)
        if changes and inside:
            operation()

    fsync = os.fsync

    def sync(descriptor: int) -> None:
        operation()
        fsync(descriptor)

    os.fsync = sync
    sys.addaudithook(watch)
    sys.argv = ["spr", *arguments]
    try:
        cli.main()
    except SystemExit as done:
        os.write(writer, str(count).encode())
        return int(done.code or 0)
    return 1


def first_difference(found: bytes, expected: bytes) -> str:
    """Where two contents part, with what precedes and follows."""
    k = next((k for k, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
    return f"{found[max(k - 60, 0) : k + 60]!r} instead of {expected[max(k - 60, 0) : k + 60]!r}"


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def kill_all(place: Path, names: list[str], kills: int, seed: int) -> int:
    """Kill the commands ``kills`` times in turn; returns how many times something went wrong."""
    folder, draw, failures = Place(place), random.Random(seed), 0
    known, killed = {}, dict.fromkeys(names, 0)
    # A command that ends before it is killed does not count.
    for name in itertools.takewhile(lambda _: sum(killed.values()) < kills, itertools.cycle(names)):
        state, arguments = COMMANDS[name]
        if name not in known:
            folder.make(state)
            folder.reset(state)
            _, operations, seconds = run_command(arguments, folder.work)
            known[name] = folder.content(), operations, seconds
            print(f"{name}: {operations} file operations, {seconds:.1f} s")
            # A finished command, repeated, changes nothing either.
            run_command(arguments, folder.work)
            if changed := differences(folder.content(), known[name][0]):
                failures += 1
                print(f"FAILED: `spr {arguments}`, repeated, changed {changed[:5]}")
        whole, operations, seconds = known[name]
        folder.reset(state)
        by_time = draw.random() < 0.5 or not operations
        how = {"after": draw.uniform(0, seconds)} if by_time else {"before": draw.randint(1, operations)}
        code, _, _ = run_command(arguments, folder.work, **how)
        killed[name] += code == -signal.SIGKILL
        lost = folder.damaged(state)
        again = os.waitstatus_to_exitcode(0)
        try:
            run_command(arguments, folder.work)
        except SystemExit as error:
            again, message = 1, error
        found = {} if again else folder.content()
        changed = [str(message)] if again else differences(found, whole)
        lost += folder.damaged(state)
        if lost or changed or code not in (0, -signal.SIGKILL):
            failures += 1
            print(f"FAILED: `spr {arguments}`, killed {how}: exit {code}, lost {lost}, changed {changed[:5]}")
            for file in changed[:1]:
                if file in found and file in whole:
                    print(f"  {file}: {first_difference(found[file], whole[file])}")
    for name in names:
        _, operations, seconds = known.get(name, (None, 0, 0.0))
        print(f"{name:<18} {killed[name]:>4} kills of {operations:>5} file operations and {seconds:5.1f} s")
    print(f"{sum(killed.values())} kills, {failures} failures (seed {seed})")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many times a command is killed")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the times and operations")
    parser.add_argument("--only", choices=COMMANDS, action="append", help="only this command; may be repeated")
    parser.add_argument("--light", action="store_true", help="only commands that load no model")
    options = parser.parse_args()
    names = options.only or (LIGHT if options.light else list(COMMANDS))
    # Imported here once: each child is a copy of this process. Nothing may be computed in it: that starts threads.
    for name in IMPORTED:
        importlib.import_module(name)
    if any(
        COMMANDS[name][0] in ("trained", "published") or name in ("train", "quickstart", "rounds") for name in names
    ):
        importlib.import_module("torch")
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory() as place:
        sys.exit(min(kill_all(Path(place), names, options.kills, options.seed), 1))


if __name__ == "__main__":
    main()
