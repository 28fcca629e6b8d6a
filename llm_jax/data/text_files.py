"""The files that a path, a folder or a glob pattern stands for as a source of documents, and what is left
out."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_jax.core.errors import UserError, nearest
from llm_jax.core.format import counted
from llm_jax.data.documents import SUFFIXES

_OTHER_KINDS = {  # the first ones first: beside the data of `datasets` lie .json files
    ".arrow": "; datasets.Dataset.from_file({0!r}).to_parquet(...) makes Parquet of it",
    ".json": "; jq -c '.[]' {0} > {0}l makes JSONL of an array",
    ".ndjson": "; it is JSONL under another name: rename it",
    ".csv": "; pandas.read_csv({0!r}).to_parquet(...) makes Parquet of it",
    ".feather": "; pandas.read_feather({0!r}).to_parquet(...) makes Parquet of it",
}
"""Ends of the error for files of other kinds, by their endings."""
_UPPER_CASE = "; endings in lower case are read: rename it"
_NAMED = 3  # of each group that a line counts


@dataclass
class TextFiles:
    """The files of a source that are read, in the order of their paths, and what isn't."""

    read: list[Path] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """Files and folders whose name begins with a dot (Jupyter's .ipynb_checkpoints, macOS's ._name, .venv),
    and folders whose name begins with an underscore (Spark's _temporary, Delta's _delta_log, __MACOSX)."""
    linked: list[str] = field(default_factory=list)
    """Links to folders. They aren't followed, since they may lead anywhere, and in circles."""
    folders: list[str] = field(default_factory=list)
    """Folders that a pattern matches: it stands for files."""
    others: Counter[str] = field(default_factory=Counter)
    """The endings of files whose names end in none of `SUFFIXES`, with their counts."""

    def left_out(self) -> str:
        """What isn't read, with counts and the first names; "" for nothing."""
        endings = [f"{ending or 'without ending'} {count:,}" for ending, count in self.others.most_common()]
        groups = [
            (f"{len(self.hidden):,} hidden", self.hidden),
            (counted(len(self.linked), "linked folder"), self.linked),
            (counted(len(self.folders), "folder"), self.folders),
            (counted(self.others.total(), "other file"), endings),
        ]
        return ", ".join(f"{count} ({_first(names)})" for count, names in groups if names)


def find_text_files(name: str, path: Path) -> TextFiles:
    """The text files of a source's path, folder or glob pattern. A path or pattern may name what is hidden.

    Raises UserError if there are none, and for a link to a file that isn't there.
    """
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"data.source={name}: must end in one of {', '.join(SUFFIXES)}{_way_on(path)}")
        return TextFiles([path])
    found = TextFiles()
    for file in sorted(_below(path, found)) if path.is_dir() else _matched(path, found):
        if not file.name.endswith(SUFFIXES):
            found.others[file.suffix] += 1
        elif not file.is_file():
            raise UserError(
                f"data.source={name}: {file} is no file, or a link to one that isn't there; bring it "
                "back, or remove it"
            )
        else:
            found.read.append(file)
    if not found.read:
        if not found.left_out() and not path.is_dir():
            bracket = "; write [[] for a [ that is part of a name" if "[" in name else ""
            hint = f"nothing matches the pattern{bracket}" if glob.has_magic(name) else _near_path(path)
            raise UserError(f"data.source={name}: no such file or folder; {hint}")
        there = f"; there are {found.left_out()}" if found.left_out() else ""
        endings = [ending for ending in (*_OTHER_KINDS, *found.others) if ending in found.others]
        way_on = next(filter(None, (_way_on(path / f"NAME{ending}") for ending in endings)), "")
        raise UserError(
            f"data.source={name}: no files that end in one of {', '.join(SUFFIXES)}{there}{way_on}"
        )
    return found


def _way_on(path: Path) -> str:
    """The end of the error for a file of another kind: what makes a file of it that is read; "" if that isn't
    known."""
    if path.name.lower().endswith(SUFFIXES):
        return _UPPER_CASE
    return _OTHER_KINDS.get(path.suffix.lower(), "").format(str(path))


def same_content(files: Sequence[Path], sums: Sequence[str]) -> list[tuple[Path, Path]]:
    """The files whose documents come twice: (a file, the earlier one that has the same bytes, or that has
    its name but for the ending of a compression). `sums`: of the files' bytes."""
    twice: list[tuple[Path, Path]] = []
    seen: dict[str | Path, Path] = {}
    for file, digest in zip(files, sums, strict=True):
        plain = file.with_name(file.name.removesuffix(".gz").removesuffix(".zst"))
        if earlier := seen.get(digest) or seen.get(plain):
            twice.append((file, earlier))
        seen.setdefault(digest, file)
        seen.setdefault(plain, file)
    return twice


def _below(folder: Path, found: TextFiles) -> Iterator[Path]:
    """The files of a folder and its folders. Notes what is hidden or linked. Raises OSError for a folder that
    can't be read."""

    def fail(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, onerror=fail):
        here = Path(at)
        folders.sort()
        for inner in [*folders]:
            hidden = inner.startswith((".", "_"))
            if hidden or (here / inner).is_symlink():
                (found.hidden if hidden else found.linked).append(str((here / inner).relative_to(folder)))
                folders.remove(inner)
        for file in sorted(files):
            if file.startswith("."):
                found.hidden.append(str((here / file).relative_to(folder)))
            else:
                yield here / file


def _matched(pattern: Path, found: TextFiles) -> Iterator[Path]:
    """The files that a pattern matches. Notes folders, and hidden files, which * doesn't match."""
    matches = glob.glob(str(pattern), recursive=True)  # noqa: PTH207
    every = glob.glob(str(pattern), recursive=True, include_hidden=True)  # noqa: PTH207
    found.hidden += [name for name in sorted({*every} - {*matches}) if name.endswith(SUFFIXES)]
    for match in map(Path, sorted(matches)):
        if match.is_dir():
            found.folders.append(str(match))
        else:
            yield match


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _near_path(path: Path) -> str:
    """A hint for a path that does not exist: the name nearest to its first missing part."""
    missing = next(part for part in (*reversed(path.parents), path) if not part.exists())
    hint = nearest(str(missing), [str(beside) for beside in missing.parent.iterdir()])
    return hint if hint.startswith("did you") else f"{missing.parent} has no '{missing.name}'"
