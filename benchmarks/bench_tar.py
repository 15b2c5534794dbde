"""Compare reading images from tar files with reading them from a folder, and measure the index of tar files.

    python benchmarks/bench_tar.py PHOTOS [--images 5000] [--members 1700000] [--repeats 5]

Files of real sizes are made from the photographs of a folder, repeated with other names, as files in folders of 1,000
and in tar files of 1,000. Each measurement reads all of them in one random order in a process of its own, with one
thread: the bytes alone (`read_bytes`), and decoded (`check`). Places alternate, and medians are reported. The bound
applies to CPU seconds, which depend less on other processes than wall-clock time does. The files are in the page cache:
a cold cache can't be made without the rights of an administrator. ``--uncached`` asks the kernel to drop the files'
pages first (posix_fadvise), which a file system need not do.

The index is measured on tar files of small members that are shaped like those of Objects365: seconds per 100,000
members with headers in the page cache, the size of the index, seconds to load it from the cache, and the memory of a
process that has it, for one tar file and for 51. Python's tarfile lists the same members for comparison. Prints a
table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

PER_FOLDER = 1000
SPEED_WANTED = 1.0


def make_images(photos: Path, out: Path, count: int) -> None:
    """Write ``count`` files into ``out/files`` and ``out/tars``; the last bytes make each one different."""
    data = [path.read_bytes() for path in sorted(photos.iterdir())]
    (out / "tars").mkdir()
    for number in range(count):
        folder = out / "files" / f"patch{number // PER_FOLDER}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:08d}.jpg").write_bytes(data[number % len(data)] + number.to_bytes(4, "big"))
    for folder in sorted((out / "files").iterdir()):
        subprocess.run(
            ["tar", "-cf", out / "tars" / f"{folder.name}.tar", "-C", out / "files", folder.name], check=True
        )


def make_members(out: Path, members: int, tars: int) -> None:
    """Write tar files with members of 600 bytes under names of Objects365; headers are as GNU tar writes them."""
    out.mkdir()
    data, at = bytes(1024), 0
    for number in range(tars):
        count = members // tars + (number < members % tars)
        with (out / f"patch{number}.tar").open("wb") as file:
            for image in range(at, at + count):
                info = tarfile.TarInfo(f"patch{number}/objects365_v2_{image:08d}.jpg")
                info.size = 600
                file.write(info.tobuf(tarfile.GNU_FORMAT) + data)
            file.write(bytes(1024))
        at += count


def names_in(place: Path) -> list[str]:
    """The names of all images, in a random order that is always the same."""
    names = [path.relative_to(place).as_posix() for path in sorted(place.glob("*/*.jpg"))]
    random.Random(0).shuffle(names)
    return names


def measure_reading(place: Path, names: Path, method: str, uncached: bool) -> dict[str, float]:
    """Read all images of a place; runs in a process of its own."""
    from spr.core.images import ImageSource

    wanted = json.loads(names.read_text())
    source = ImageSource(place)
    source.prepare()
    source.has(wanted[0])
    if uncached:
        for path in place.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
    sizes = {}
    if method == "check":
        sizes = {name: source.header(name)[0] for name in wanted}
    start, cpu = time.perf_counter(), time.process_time()
    for name in wanted:
        if method == "check":
            source.check(name, sizes[name])
        else:
            source.read_bytes(name)
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def measure_index(place: Path) -> dict[str, float]:
    """Index a place, or load its index from the cache; runs in a process of its own."""
    # Before the first measurement, as in all results so far: the memory is that of the index, not of this library.
    import pyarrow as pa  # noqa: F401

    from spr.core.images import ImageSource

    before = _memory()
    start = time.perf_counter()
    source = ImageSource(place)
    source.prepare()
    seconds = time.perf_counter() - start
    private, total = _memory()
    start = time.perf_counter()
    found = sum(source.identity(f"images/v2/patch0/objects365_v2_{k:08d}.jpg") is not None for k in range(10_000))
    lookup = (time.perf_counter() - start) / 10_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "private_mib": private - before[0],
        "total_mib": total - before[1],
        "peak_mib": peak - before[1],
        "lookup_us": lookup * 1e6,
        "found": found,
    }


def measure_tarfile(place: Path) -> dict[str, float]:
    """List the members with Python's tarfile."""
    before, start = _memory(), time.perf_counter()
    with tarfile.open(next(place.glob("*.tar"))) as tar:
        count = len(tar.getmembers())
    return {"seconds": time.perf_counter() - start, "total_mib": _memory()[1] - before[1], "members": count}


def _memory() -> tuple[float, float]:
    """Private and total resident memory of this process in MiB; the total includes files that are mapped."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    total = int(fields["Rss"].split()[0]) / 1024
    return (int(fields["Private_Dirty"].split()[0])) / 1024, total


def _process(cache: Path, function: str, *arguments: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--call", json.dumps([function, *map(str, arguments)])]
    done = subprocess.run(
        command, env={**os.environ, "SPR_CACHE": str(cache)}, check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _call(function: str, *arguments: str) -> dict[str, float]:
    if function == "reading":
        place, names, method, uncached = arguments
        return measure_reading(Path(place), Path(names), method, uncached == "True")
    return {"index": measure_index, "tarfile": measure_tarfile}[function](Path(arguments[0]))


def main() -> None:
    """Make the files, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", help="a folder of photographs")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--members", type=int, default=1_700_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        print(json.dumps(_call(*json.loads(options.call))))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        work = Path(temporary)
        cache = work / "cache"
        if options.photos is not None:
            make_images(options.photos, work, options.images)
            names = work / "names.json"
            names.write_text(json.dumps(names_in(work / "files")))
            size = sum(path.stat().st_size for path in (work / "files").glob("*/*")) / options.images
            print(f"{options.images:,} images, {size / 1e3:.0f} kB each on average")
            for method in ("read_bytes", "check"):
                seconds: dict[str, list[float]] = {"files": [], "tars": []}
                cpu: dict[str, list[float]] = {"files": [], "tars": []}
                for _ in range(options.repeats):
                    for place, own in seconds.items():
                        result = _process(cache, "reading", work / place, names, method, options.uncached)
                        own.append(result["seconds"])
                        cpu[place].append(result["cpu"])
                medians = {place: statistics.median(own) for place, own in seconds.items()}
                ratio = statistics.median(cpu["files"]) / statistics.median(cpu["tars"])
                wall = medians["files"] / medians["tars"]
                verdict = "ok" if ratio >= SPEED_WANTED else "MISSED"
                rates = ", ".join(f"{place} {options.images / value:,.0f} images/s" for place, value in medians.items())
                told = f"tars {ratio:.2f} times as fast by CPU time ({verdict}), {wall:.2f} by the clock"
                print(f"{method}: {rates}; {told}")
                results[method] = {"seconds": seconds, "cpu": cpu, "ratio": ratio}
        for tars, members in ((1, 100_000), (51, options.members)) if options.members else ():
            place = work / f"members-{tars}"
            make_members(place, members, tars)
            first, again = _process(cache, "index", place), _process(cache, "index", place)
            size = sum(path.stat().st_size for path in (cache / "tars").glob("*.arrow")) / 2**20
            print(f"{members:,} members in {tars} tar files: indexed in {first['seconds']:.1f} s,")
            print(f"  {first['seconds'] / members * 1e5:.2f} s per 100,000; peak {first['peak_mib']:.0f} MiB more")
            print(f"  from the cache {again['seconds']:.2f} s, {again['private_mib']:.0f} MiB private,")
            print(f"  {again['total_mib']:.0f} MiB with mapped files; all indexes in the cache {size:.0f} MiB;")
            print(f"  {again['lookup_us']:.0f} µs per image that is looked up")
            results[f"index {members}"] = {"first": first, "again": again}
            if tars == 1:
                results["tarfile"] = other = _process(cache, "tarfile", place)
                print(f"  tarfile: {other['seconds']:.1f} s, {other['total_mib']:.0f} MiB")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
