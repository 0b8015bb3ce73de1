"""What `skinvl prep` costs beside what it cannot avoid: `python benchmarks/prep.py [--photos DIR]`.

images   verified, hashed and placed per second, over Pillow's decoding alone with the same number of processes
rows     conversations of a text-only source per second
memory   peak resident set of each process for 10,000, 100,000 and 1,000,000 rows
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from skinvl.sources.prepare.images import look
from skinvl.sources.prepare.steps import prepare

CORES = len(os.sched_getaffinity(0))
WORDS = [
    f"{first}{last}"
    for first in ("ery", "derm", "papu", "kera", "melan", "pig", "scal")
    for last in ("ious", "atitis", "oma")
]


def draw(folder: Path, count: int) -> list[Path]:
    """Photos of skin-like noise, 640 × 480 pixels."""
    folder.mkdir(parents=True)
    generator, paths = random.Random(0), []
    for number in range(count):
        coarse = Image.frombytes("RGB", (64, 48), generator.randbytes(64 * 48 * 3))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def write_rows(path: Path, count: int) -> None:
    """Text-only conversations of a question and an answer of about 25 words, in LLaVA's form."""
    generator = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answer = " ".join(
                f"{one}{other}"
                for one, other in zip(generator.choices(WORDS, k=25), generator.choices(WORDS, k=25), strict=True)
            )
            question = "What do you see in this case, and what does it mean for the patient?"
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"id": f"q{number}", "conversations": turns}) + "\n")


def _decode(paths: Sequence[Path]) -> int:
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
    return len(paths)


def _look(root: Path, names: Sequence[str], out: Path) -> int:
    return sum(look(root, name, out).rule is None for name in names)


def images(folder: Path, paths: Sequence[Path]) -> None:
    """Prints images per second of both, the best of five turns each, taken by turns."""
    shares = [paths[core::CORES] for core in range(CORES)]
    best = {"decode": 0.0, "prep": 0.0}
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_decode, shares))  # warm, of the processes and of the disk
        for turn in range(5):
            for name in best:
                started = time.perf_counter()
                if name == "decode":
                    done = sum(pool.map(_decode, shares))
                else:
                    names = [[path.name for path in share] for share in shares]
                    out = folder / f"out{turn}"
                    done = sum(pool.map(_look, [path.parent for path, *_ in shares], names, [out] * CORES))
                assert done == len(paths)
                best[name] = max(best[name], done / (time.perf_counter() - started))
    share = best["prep"] / best["decode"]
    print(f"images/s: decoding alone {best['decode']:,.0f}, prep {best['prep']:,.0f}: {share:.2f} of it")


def rows(folder: Path, count: int) -> None:
    """Prints rows per second of a whole `skinvl prep`, from raw file to prepared source."""
    write_rows(folder / "raw" / "talk.jsonl", count)
    started = time.perf_counter()
    account = prepare("llava", folder / "raw", folder / "out", workers=CORES)
    assert account is not None
    assert account.examples.total() == count
    print(f"rows/s: {count / (time.perf_counter() - started):,.0f} of {count:,} text-only rows, with {CORES} processes")


def memory(folder: Path) -> None:
    """Prints the peak resident sets of all processes of a fresh `skinvl prep` at three sizes."""
    code = "import sys; from skinvl.sources.prep import main; sys.exit(main(sys.argv[1:]))"
    totals = []
    for count in (10_000, 100_000, 1_000_000):
        raw = folder / f"raw{count}"
        write_rows(raw / "talk.jsonl", count)
        given = [code, "llava", str(raw), str(folder / f"out{count}"), "--workers", str(CORES)]
        peaks: Counter[str] = Counter()
        with subprocess.Popen(
            [sys.executable, "-c", *given], stdout=subprocess.DEVNULL, start_new_session=True
        ) as started:
            while started.poll() is None:
                peaks |= _peaks(started.pid)  # the greater of each
                time.sleep(0.02)
        assert started.returncode == 0
        totals.append(max(peaks.values()) / 1024)
        listed = ", ".join(f"{peak / 1024:,.0f}" for peak in sorted(peaks.values(), reverse=True))
        print(f"memory: {count:>9,} rows, MiB of each process: {listed}", flush=True)
    print(f"memory: the largest process, {max(totals) / min(totals):.2f} times from the least to the most")


def _peaks(session: int) -> Counter[str]:
    """KiB by process id: the peak resident set of each process of a session that is alive."""
    found: Counter[str] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                lines = (process / "status").read_text().splitlines()
                found[process.name] = sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
    return found


def main() -> None:
    """Runs all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="a folder of photos, instead of drawn ones")
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    print(f"{CORES} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder, sorted(given.photos.glob("*.jpg")) if given.photos else draw(folder / "photos", 600))
        rows(folder / "rows", given.rows)
        memory(folder)


if __name__ == "__main__":
    main()
