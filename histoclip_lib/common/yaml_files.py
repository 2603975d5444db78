"""YAML from users, read as plain data: no tags, no aliases, and of limited size.

What is not plain is found in the parser's events, before any value is built, and listed with its lines; a stricter
loader, such as that of ruamel.yaml, stops at the first fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, is_unicode, shown
from histoclip_lib.common.files import read_utf8

MAX_BYTES = 100_000
MAX_NODES = 5_000  # keys and values
MAX_DEPTH = 10
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
MERGE = "tag:yaml.org,2002:merge"
# Besides YAMLError: a date, a number or a character that does not exist, or `!!int` before something else.
NOT_YAML = (yaml.YAMLError, ValueError, OverflowError, LookupError, RecursionError)


def read_yaml(path: Path) -> tuple[object, list[str]]:
    """Read a YAML file whose author need not be trusted.

    Only mappings, lists, texts, numbers, booleans and nulls are built (`yaml.SafeLoader`), so no file can run code.
    Whatever lets a small file become large is refused before any value is built.

    Parameters
    ----------
    path : Path
        A UTF-8 file, with a byte-order mark or without.

    Returns
    -------
    value : object
        What the file holds.
    repeated : list of str
        A line for each key that is repeated in a mapping: YAML silently keeps the last.

    Raises
    ------
    HistoCLIPError
        For a file that cannot be read, is larger than `MAX_BYTES`, not UTF-8 or not YAML; and listing every tag,
        anchor, alias and merge key, every text with characters that cannot be written, and the place where it becomes
        too deep or too long.
    """
    text = read_utf8(path, MAX_BYTES)
    try:
        problems = list(_problems(text))
        if problems:
            raise HistoCLIPError(f"{path} holds more than plain YAML. Write the values out:\n{bullet_list(problems)}")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        repeated = list(_repeated(node))
        return (None if node is None else loader.construct_document(node)), repeated
    except HistoCLIPError:
        raise
    except NOT_YAML as error:
        hint = " Indent with spaces." if "'\\t'" in str(error) else ""
        raise HistoCLIPError(f"{path} is not YAML: {error}{hint}") from error


def _problems(text: str) -> Iterator[str]:
    """Yield a line for whatever is not plain data; stop where it becomes too deep or too long."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            yield f"{line}: the alias *{event.anchor}"
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if event.anchor is not None:
                yield f"{line}: the anchor &{event.anchor}"
            if event.tag is not None and event.tag not in PLAIN_TAGS:
                yield f"{line}: the tag {event.tag}"
            if isinstance(event, yaml.ScalarEvent) and ("\0" in event.value or not is_unicode(event.value)):
                yield f"{line}: a text with a null character or invalid Unicode: {shown(event.value)}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            yield f"{line}: more than {MAX_DEPTH} levels or {MAX_NODES:,} keys and values"
            return


def _repeated(node: yaml.Node | None) -> Iterator[str]:
    """Yield a line for each repeated key of a mapping, and for each merge key."""
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        yield from (f"{key[:100]}: appears {count} times" for key, count in keys.items() if count > 1)
        if any(key.tag == MERGE for key, _ in node.value):
            yield "<<: merges mappings; write the values out"
        for pair in node.value:
            yield from (line for part in pair for line in _repeated(part))
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _repeated(part)
