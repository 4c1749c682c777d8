"""What `detect`, `certify` and `attack` share: picture files in, overlays and one json out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from lipdet.commands.options import Parser, check_folder, verb_parser
from lipdet.errors import InputError
from lipdet.files import write_json, write_picture
from lipdet.images.source import PICTURES, load_rgb, pictures_in
from lipdet.progress import track


def picture_parser(summary: str, example: str, detector_help: str) -> Parser:
    """Return the parser of a verb that looks at pictures."""
    parser = verb_parser(summary, example)
    parser.add_argument("detector", help=detector_help)
    parser.add_argument("images", nargs="+", type=Path, help="picture files, or folders of them")
    return parser


class PictureFiles:
    """The pictures that a verb looks at, and the folder for what it finds in them.

    Args:
        given: files, or folders of them.
        out: the folder, made when something is found.
        ends: what ends the names of overlays, as far as it is known before.

    Raises:
        InputError: a folder holds no picture, or an overlay would replace one.
    """

    def __init__(self, given: Sequence[Path], out: Path, ends: Sequence[str] = ("",)) -> None:
        check_folder(out)
        self.out = out
        self.paths = _files_in(given)
        self._stems = _distinct_stems(self.paths)
        self._kept: list[dict[str, Any]] = []
        self._inputs = {path.resolve() for path in self.paths}
        for index in range(len(self.paths)):
            self._overlays(index, ends)

    def _overlays(self, index: int, ends: Iterable[str]) -> list[Path]:
        """Return the files of a picture's overlays, of which none is a picture looked at."""
        files = [self.out / f"{self._stems[index]}{end}.png" for end in ends]
        for file in files:
            if file.resolve() in self._inputs:
                raise InputError(f"{file} is one of the pictures; choose another --out.")
        return files

    def batches(self, size: int) -> Iterator[list[tuple[int, Image.Image]]]:
        """Yield index and RGB picture of each file that can be read, at most `size` at a time.

        Raises:
            InputError: some could not, once all others are done.
        """
        broken = []
        for start in range(0, len(self.paths), size):
            batch = []
            for index, path in enumerate(self.paths[start : start + size], start):
                try:
                    batch.append((index, load_rgb(path)))
                except InputError as error:
                    broken.append(str(error).removesuffix("."))
            if batch:
                yield batch
        if broken:
            rest = len(self.paths) - len(broken)
            raise InputError(
                f"{'; '.join(broken)}. What was asked for was done with {rest} others."
            )

    def each(self, doing: str) -> Iterator[tuple[int, Image.Image]]:
        """Yield the same, one at a time, under a progress bar that says what is done with them."""
        return (one for [one] in track(self.batches(1), doing, len(self.paths)))

    @contextmanager
    def written(self, name: str, facts: Mapping[str, Any]) -> Iterator[None]:
        """Write facts and all that is kept meanwhile to a json file, however the work ends."""
        try:
            yield
        finally:
            if self._kept:
                content = {**facts, "pictures": self._kept}
                write_json(self.out / name, content)

    def keep(
        self, index: int, overlays: Mapping[str, Image.Image], entry: Mapping[str, Any], words: str
    ) -> None:
        """Write overlays of a picture by what ends their names, print words, keep an entry."""
        files = self._overlays(index, overlays)
        self.out.mkdir(parents=True, exist_ok=True)
        for file, drawn in zip(files, overlays.values(), strict=True):
            write_picture(file, drawn)
        self._kept.append({"image": str(self.paths[index]), **entry})
        print(f"{self.paths[index]}: {words}")


def _files_in(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and of folders the pictures in them, by name."""
    files = []
    for path in paths:
        inside = pictures_in(path)
        if path.is_dir() and not inside:
            raise InputError(f"{path} holds no picture ({', '.join(sorted(PICTURES))}).")
        files += inside if path.is_dir() else [path]
    return files


def _distinct_stems(paths: Sequence[Path]) -> list[str]:
    """Number file stems that pictures share; no number makes another picture's name."""
    shared = Counter(path.stem for path in paths)
    names, numbers = set(shared), Counter[str]()
    found = []
    for path in paths:
        name = path.stem
        while shared[path.stem] > 1 and name in names:
            numbers[path.stem] += 1
            name = f"{path.stem}-{numbers[path.stem]}"
        names.add(name)
        found.append(name)
    return found
