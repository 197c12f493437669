"""Fuzz what reads files of strangers: the recipe, and the header of a member's weights.

    python benchmarks/fuzz.py --target recipe --seconds 300
    python benchmarks/fuzz.py --target header --seconds 300

Needs atheris (`pip install atheris`), which follows the code that each input reaches. An
input must give a result or an error of the user's; anything else, or ten seconds for one input,
ends the run with that input in a file `crash-…` or `timeout-…` in `--artifacts`.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

if __name__ == "__main__" and not __package__:  # as a script: the project's root comes first
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["yaml", "fusetune", "json"]):
    from fusetune.errors import FusetuneError
    from fusetune.members.header import read_header
    from fusetune.recipe_file import parse, ready

PATIENCE = 10  # seconds for one input
LONGEST = 4096  # bytes of an input
PLACE = Path(tempfile.mkdtemp(prefix="fusetune-fuzz-"))


def recipe(data: bytes) -> None:
    """A recipe from any bytes; one that is accepted can be kept and read again."""
    try:
        found = parse(data.decode("utf-8", "replace"))
        again = parse(found.to_yaml())
    except FusetuneError:
        return
    assert again.public() == found.public()


def header(data: bytes) -> None:
    """A weight file from any bytes; what is accepted is what the format's library reads."""
    from safetensors import SafetensorError, safe_open

    file = PLACE / "model.safetensors"
    file.write_bytes(data)
    try:
        found = read_header(file)
    except FusetuneError:
        return
    try:
        with safe_open(file, framework="pt") as opened:
            assert set(opened.keys()) == set(found), found
    except SafetensorError as error:
        raise AssertionError(f"accepted, but the library says: {error}") from error


def framed(data: bytes) -> None:
    """The same with the length of the header put right, so that the JSON is what varies."""
    text, _, rest = data.partition(b"\x00")
    header(struct.pack("<Q", len(text)) + text + rest)


def any_header(data: bytes) -> None:
    """Both: the first bit chooses."""
    (framed if data[:1] < b"\x80" else header)(data[1:])


TARGETS: dict[str, Callable[[bytes], None]] = {"recipe": recipe, "header": any_header}


def seeds(target: str) -> Iterable[bytes]:
    """Inputs to begin with."""
    if target == "recipe":
        yield from (path.read_bytes() for path in ready().values())
        yield b"a: &a [1, *a]\n<<: {b: !!int 0x1f, c: 1e-5, d: 2026-01-01, ? e : .nan}\n"
        return
    entry = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    other = {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]}
    for content in ({"a": entry, "b": other}, {"__metadata__": {"format": "pt"}, "a": entry}):
        text = json.dumps(content).encode()
        yield b"\x00" + text + b"\x00" + b"\x00" * (10 if "b" in content else 8)
        yield b"\x80" + struct.pack("<Q", len(text)) + text + b"\x00" * 10


def main() -> None:
    """Fuzz one target for a while."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=sorted(TARGETS), required=True)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--artifacts", type=Path, default=Path())
    options = parser.parse_args()
    corpus = PLACE / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds(options.target)):
        (corpus / f"seed-{number}").write_bytes(content[:LONGEST])
    for content in seeds(options.target):  # what is imported late is imported now
        TARGETS[options.target](content)
    flags = {
        "max_total_time": options.seconds,
        "timeout": PATIENCE,
        "max_len": LONGEST,
        "seed": options.seed,
        "artifact_prefix": f"{options.artifacts}/",
        "print_final_stats": 1,
    }
    arguments = [
        sys.argv[0],
        *(f"-{name}={value}" for name, value in flags.items()),
        str(corpus),
    ]
    atheris.Setup(arguments, TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
