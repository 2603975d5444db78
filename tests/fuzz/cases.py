"""How many cases the fuzz tests try, what they try, and what has to hold."""

import os
from collections import Counter
from datetime import timedelta
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError

# Of each test. More for a soak, such as FUZZ_EXAMPLES=2000 python -m pytest tests/fuzz
FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
TOO_LONG = timedelta(seconds=20)  # a hang, on however slow a machine
TRIED = Counter()  # by name of the test, and by what came of it

fuzz = settings(
    max_examples=FUZZ_EXAMPLES,
    deadline=TOO_LONG,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def try_case(name, read):
    """Hold what holds of every reader: it returns, or raises HistoCLIPError with a message that can be written."""
    try:
        result = read()
    except HistoCLIPError as error:
        assert str(error).strip()
        str(error).encode()
        TRIED[name, "refused"] += 1
        return None
    TRIED[name, "read"] += 1
    return result


def damaged(content):
    """Return a strategy of what can become of a file: some bytes changed, put in, taken out, said twice or cut off."""
    return st.integers(0, 2**64 - 1).map(lambda seed: _damage(content, Random(seed)))


def _damage(content, random):
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        within = len(changed) if random.random() < 0.5 else min(len(changed), 200)  # headers are at the beginning
        at, length = random.randrange(within + 1), random.choice((1, 1, 1, 2, 4, 16, 100))
        kind = random.choice(("flip", "flip", "set", "set", "digit", "put", "take", "twice", "cut"))
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == "set":
            changed[at : at + length] = random.choice((random.randbytes(length), b"\0" * length, b"\xff" * length))
        elif kind == "digit":
            changed[at : at + 1] = random.choice((b"0", b"9", b"-", b"1e9", b'"', b",", b"\n", b" "))
        elif kind == "put":
            changed[at:at] = random.randbytes(length)
        elif kind == "take":
            del changed[at : at + length]
        elif kind == "twice":
            changed[at:at] = changed[at : at + length]
        elif kind == "cut" and not random.randrange(3):
            del changed[at:]
    return bytes(changed)


def written(tokens):
    """Return a strategy of bytes put together from tokens of a language, and of any text."""
    parts = st.lists(st.sampled_from(tokens) | st.text(max_size=3), max_size=40)
    return (parts.map("".join) | st.text()).map(lambda text: text.encode("utf-8", errors="replace"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw, value):
    """Return a strategy of a JSON value with one part replaced by another value, left out, or as it is."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {name: part for name, part in value.items() if name != key}
        return value | {key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(changed(value[place])), *value[place + 1 :]]
    return draw(JSON)
