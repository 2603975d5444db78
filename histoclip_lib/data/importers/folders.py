"""One folder for each class, and in or above it one for each part."""

from __future__ import annotations

import hashlib
from pathlib import Path

from histoclip_lib.data.importers.plan import Found, ImportOptions, Item, image_files
from histoclip_lib.data.importers.registry import importer
from histoclip_lib.data.splits import part_of


def _is_folders(path: Path, options: ImportOptions) -> bool:
    return (
        path.is_dir() and not (path / "labels.csv").exists() and len(_classes(image_files(path, options.out), path)) > 1
    )


def _classes(files: list[Path], root: Path) -> list[str]:
    """Return the folders that name classes: those in which images are, without parts of the data set."""
    return sorted({name for file in files if (name := _class_of(file, root))})


def _class_of(file: Path, root: Path) -> str:
    names = [
        name for name in file.parent.relative_to(root).parts if not part_of(name) and name not in ("images", "img")
    ]
    return names[0] if names else ""


@importer(
    "folders",
    title="A folder for each class",
    about="a folder of folders, named like the classes, with images; also below train/, val/ and test/",
    recognises=_is_folders,
    options=("none",),
)
def read_folders(source: Path, options: ImportOptions) -> Found:
    """Read folders of images; one image, equal in name and content, may lie in several."""
    files = image_files(source, options.out)
    found = Found(_classes(files, source), [], ["classes: the folders; an image in several folders has several labels"])
    images: dict[tuple[str, str, bytes], tuple[Path, dict[str, float]]] = {}
    in_classes = 0
    for file in files:
        name = _class_of(file, source)
        if not name:
            found.leave_out("in no folder of a class", str(file.relative_to(source)))
            continue
        in_classes += 1
        part = next((part for folder in file.relative_to(source).parts[:-1] if (part := part_of(folder))), "")
        key = (file.name, part, hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
        images.setdefault(key, (file, {}))[1][name] = 1
    for (name, part, _), (file, labels) in images.items():
        found.items.append(Item(name, labels, file, split=part, complete=options.none in labels))
    found.notes.append(f"{in_classes:,} files, {len(images):,} different images")
    return found
