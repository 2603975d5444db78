"""The importers by name: each registers itself beside its reader, with how its files are recognised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.registry import Registry
from histoclip_lib.data.importers.plan import COMMON_OPTIONS, Found, ImportOptions, ImportPlan, make_plan

Reader = Callable[[Path, ImportOptions], Found]
Recognises = Callable[[Path, ImportOptions], bool]


@dataclass(frozen=True)
class Importer:
    """A form in which labels are found.

    Attributes
    ----------
    name, title, about : str
        As `--format` takes it, as a plan calls it, and what it looks like, in a sentence.
    read : callable
        `read(source, options)` returns what the source holds, a `Found`.
    recognises : callable
        `recognises(source, options)`: whether a file or folder has this form. It may raise HistoCLIPError for what it
        cannot read, which means no and is told where no form is recognised.
    options : tuple of str
        Fields of `ImportOptions` that it takes besides `COMMON_OPTIONS`.
    """

    name: str
    title: str
    about: str
    read: Reader
    recognises: Recognises
    options: tuple[str, ...] = ()


# The first that recognises a source reads it, so that the narrower forms come first. Those that cut patches out of
# slides are above this package.
IMPORTERS: Registry[Importer] = Registry(
    "format",
    parameter="--format",
    modules=(
        "histoclip_lib.data.importers.coco",
        "histoclip_lib.slides.annotations",
        "histoclip_lib.slides.points",
        "histoclip_lib.data.importers.tables",
        "histoclip_lib.data.importers.folders",
    ),
)


def importer(
    name: str, *, title: str, about: str, recognises: Recognises, options: tuple[str, ...] = ()
) -> Callable[[Reader], Reader]:
    """Register the decorated reader as an importer; `Importer` has the arguments.

    Examples
    --------
    >>> from histoclip_lib.data.importers import Found, importer
    >>> def is_nothing(source, options):
    ...     return source.suffix == ".nothing"
    >>> @importer("nothing", title="Nothing", about="an empty file", recognises=is_nothing)
    ... def read_nothing(source, options):
    ...     return Found(classes=[], items=[])
    """

    def register(read: Reader) -> Reader:
        IMPORTERS.add(name, Importer(name, title, about, read, recognises, options), read.__module__)
        return read

    return register


def plan_import(source: Path, options: ImportOptions, format: str = "") -> ImportPlan:
    """Read a source and plan its import; nothing is written.

    Parameters
    ----------
    source : Path
        A file or folder.
    options : ImportOptions
        How it is to be understood.
    format : str
        The name of an importer; without it, the first that recognises the source.

    Raises
    ------
    HistoCLIPError
        For a source that is absent, that no importer recognises or that cannot be read, and for an option that its
        importer does not take.
    """
    if not source.exists():
        raise HistoCLIPError(f"{source} does not exist.")
    entry = IMPORTERS[format] if format else _recognised(source, options)
    taken = (*COMMON_OPTIONS, *entry.options)
    if unused := [name for name in options.changed() if name not in taken]:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise HistoCLIPError(f"{given}: the format {entry.name} ({entry.title}) does not take it.")
    return make_plan(entry.title, source, entry.read(source, options), options)


def _recognised(source: Path, options: ImportOptions) -> Importer:
    reasons = []
    for entry in IMPORTERS.load().values():
        try:
            if entry.recognises(source, options):
                return entry
        except HistoCLIPError as error:
            reasons.append(str(error))
    forms = bullet_list([f"{entry.name}: {entry.about}" for entry in IMPORTERS.load().values()])
    why = "".join(f"\n  {reason}" for reason in dict.fromkeys(reasons))
    raise HistoCLIPError(f"{source}: the label format was not recognised.{why}\nName it with --format:\n{forms}")
