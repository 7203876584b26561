"""WordNet's files, found on this machine: METEOR's synonyms come from them, and nothing is fetched."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kt.errors import InputError
from kt.records import file_hash

DEBIAN = Path("/usr/share/wordnet")
HOW = "apt install wordnet-base; or copy a folder with WordNet's data.noun and the rest here and set KT_WORDNET to it"

_LEXNAMES = {
    "adj": "all pert",
    "adv": "all",
    "noun": "Tops act animal artifact attribute body cognition communication event feeling food group location motive object"
    " person phenomenon plant possession process quantity relation shape state substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion perception"
    " possession social stative weather",
    "adj ": "ppl",
}
"""WordNet's files by number (lexnames(5WN)): Debian's package leaves this list out, nltk wants it."""


def find_wordnet() -> Path | None:
    """Return the folder, or nltk's zip file, that holds WordNet: KT_WORDNET, nltk's data folders, then Debian's place."""
    given = os.environ.get("KT_WORDNET")
    if given:
        return Path(given) if _holds(Path(given)) else None
    return next((place for place in _places() if _holds(place)), None)


def _places() -> Iterator[Path]:
    own = [Path(place) for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place]
    prefixes = [Path(sys.prefix) / part for part in ("nltk_data", "share/nltk_data", "lib/nltk_data")]
    shared = [Path(place) / "nltk_data" for place in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")]
    for folder in [*own, Path.home() / "nltk_data", *prefixes, *shared]:
        yield folder / "corpora/wordnet"
        yield folder / "corpora/wordnet.zip"
    yield DEBIAN


def _holds(place: Path) -> bool:
    return place.is_file() if place.suffix == ".zip" else (place / "data.noun").is_file()


def wordnet_hash() -> str:
    """Return the SHA-256 of WordNet's nouns (or of nltk's zip file), which tells its versions apart; empty without one."""
    place = find_wordnet()
    return "" if place is None else file_hash(place if place.suffix == ".zip" else place / "data.noun")


def open_wordnet() -> Any:
    """Return nltk's reader of the WordNet found here; InputError says where one comes from."""
    place = find_wordnet()
    if place is None:
        given = os.environ.get("KT_WORDNET")
        where = f"KT_WORDNET={given} holds no WordNet" if given else "no WordNet on this machine"
        raise InputError(f"METEOR: {where}: {HOW}; or ask for meteor-no-wordnet, which knows no synonyms")
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import FileSystemPathPointer, ZipFilePathPointer

    nltk.data.path.append(str(place))  # nltk reads only what lies where its user said: this one place, found or given above

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        """nltk's reader, also of a WordNet without the list of its files; English alone."""

        def open(self, file: str) -> Any:
            """Open one of WordNet's files."""
            if file == "lexnames":
                names = [f"{part.strip()}.{name}" for part, listed in _LEXNAMES.items() for name in listed.split()]
                return io.StringIO("".join(f"{number:02}\t{name}\t0\n" for number, name in enumerate(names)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Map nothing: only other languages' WordNets need it, and it would read one that may not be here."""

    root = ZipFilePathPointer(str(place), "wordnet/") if place.suffix == ".zip" else FileSystemPathPointer(str(place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are missing
        return Reader(root, None)
