"""Verbs of a tokenizer: train, encode, decode, info."""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcore.cli.verb import add_verb
from glmcore.errors import RequestError

if TYPE_CHECKING:
    from glmcore.ragged import TokenIds


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    tokenizer = add_verb(
        verbs,
        "tokenizer",
        "train a tokenizer, encode and decode",
        "  glmcore tokenizer train corpus.txt my-tokenizer --vocab-size 8192\n"
        "  glmcore tokenizer encode runs/nano/tokenizer < corpus.txt",
    )
    actions = tokenizer.add_subparsers(required=True, metavar="ACTION")
    train = add_verb(
        actions,
        "train",
        "train a tokenizer on text files",
        "  glmcore tokenizer train a.txt b.txt OUT --vocab-size 8192",
    )
    train.add_argument("files", nargs="+", type=Path, help="text files")
    train.add_argument("target", type=Path, help="directory to make")
    train.add_argument("--vocab-size", type=int, required=True)
    train.add_argument("--pattern", default="glm4", help="glm4, qwen2, cl100k, o200k, gpt2 or a regular expression")
    train.add_argument("--min-frequency", type=int, default=0, help="leave out rarer pairs")
    train.set_defaults(command=_train)
    encode = add_verb(
        actions,
        "encode",
        "turn text into token ids: a line of them for each file",
        "  echo some text | glmcore tokenizer encode runs/nano/tokenizer\n"
        "  glmcore tokenizer encode runs/nano/tokenizer a.txt b.txt --json | jq '.ids | length'\n"
        "  glmcore tokenizer encode runs/nano/tokenizer books/*.txt --output ids.npy",
    )
    _add_tokenizer(encode)
    encode.add_argument("files", nargs="*", type=Path, help="UTF-8 text files (default: stdin)")
    form = encode.add_mutually_exclusive_group()
    form.add_argument("--output", type=Path, metavar="IDS.npy", help="write all ids as one int32 array")
    form.add_argument("--json", action="store_true", help="print an object with file and ids for each file")
    encode.add_argument("--special", choices=["text", "parse"], default="text", help="what special tokens become")
    encode.add_argument("--threads", type=int, help="default: all cores")
    encode.set_defaults(command=_encode)

    decode = add_verb(
        actions,
        "decode",
        "turn token ids into text",
        "  glmcore tokenizer decode runs/nano/tokenizer ids.npy\n"
        "  echo 5 6 7 | glmcore tokenizer decode runs/nano/tokenizer",
    )
    _add_tokenizer(decode)
    decode.add_argument("file", nargs="?", type=Path, help="ids: an .npy array or numbers as text (default: stdin)")
    decode.add_argument("--skip-special-tokens", action="store_true", help="leave out tokens flagged special")
    decode.set_defaults(command=_decode)

    info = add_verb(actions, "info", "describe a tokenizer as JSON", "  glmcore tokenizer info runs/nano/tokenizer")
    _add_tokenizer(info)
    info.set_defaults(command=_info)


def _add_tokenizer(action: argparse.ArgumentParser) -> None:
    action.add_argument("tokenizer", type=Path, help="directory, tokenizer.json or compiled tokenizer (.glmtok)")


def _train(args: argparse.Namespace) -> None:
    from glmcore.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(args.files, args.vocab_size, args.pattern, min_frequency=args.min_frequency)
    tokenizer.save(args.target)


def _encode(args: argparse.Namespace) -> None:
    from glmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(args.tokenizer)
    if not args.files:
        parts = iter([tokenizer.encode_batch([_stdin_text()], args.threads, args.special).ids])
        _tell(parts, None, args)
        return
    from glmcore.progress import progress

    total = sum(path.stat().st_size for path in args.files if path.is_file())
    with progress("encode", total=total, unit="bytes", shown=args.output is not None) as bar:

        def parts_of(path: Path) -> "Iterator[TokenIds]":
            for ids, num_bytes in tokenizer.encode_file_parts(path, args.threads, args.special):
                bar.advance(num_bytes)
                yield ids

        if args.output:
            _write_npy(args.output, chain.from_iterable(map(parts_of, args.files)))
            return
        for path in args.files:
            _tell(parts_of(path), path, args)


def _stdin_text() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"stdin must hold UTF-8 text: byte {error.start} is none") from None


def _tell(parts: "Iterator[TokenIds]", path: Path | None, args: argparse.Namespace) -> None:
    if args.output:
        _write_npy(args.output, parts)
    elif args.json:
        ids = list(chain.from_iterable(part.tolist() for part in parts))
        print(json.dumps({"file": path and str(path), "ids": ids}))
    else:
        separator = ""
        for part in parts:
            sys.stdout.write(separator + " ".join(map(str, part.tolist())))
            separator = " "
        print()


def _write_npy(path: Path, parts: "Iterator[TokenIds]") -> None:
    """Write the parts as one array, in the memory of one of them."""
    import numpy as np
    from numpy.lib import format

    from glmcore.durable import atomic_file

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        header = {"descr": format.dtype_to_descr(np.dtype("<i4")), "fortran_order": False, "shape": (0,)}
        format.write_array_header_1_0(file, header)
        start, length = file.tell(), 0
        for part in parts:
            file.write(part.astype("<i4", copy=False).data)
            length += len(part)
        file.seek(0)
        format.write_array_header_1_0(file, header | {"shape": (length,)})  # numpy leaves room for the length
        assert file.tell() == start


def _decode(args: argparse.Namespace) -> None:
    from glmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(args.tokenizer)
    text = tokenizer.decode(_read_ids(args.file), skip_special_tokens=args.skip_special_tokens)
    sys.stdout.write(text)


def _read_ids(path: Path | None) -> "TokenIds":
    import numpy as np

    place = "stdin" if path is None else str(path)
    try:
        if path is not None and path.suffix == ".npy":
            return _one_dimension(np.load(path, mmap_mode="r", allow_pickle=False))
        words = (sys.stdin.read() if path is None else path.read_text(encoding="utf-8")).split()
        return np.array([int(word) for word in words], np.int32)
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(f"{place} must hold token ids: {error}") from None


def _one_dimension(ids: "TokenIds") -> "TokenIds":
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"an array of {ids.dtype} {list(ids.shape)}")
    return ids.astype("int32")


def _info(args: argparse.Namespace) -> None:
    from glmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(args.tokenizer)
    special = [{"id": tokenizer.token_to_id(token), "token": token} for token in tokenizer.special_tokens]
    described = {"vocab_size": tokenizer.vocab_size, "patterns": tokenizer.patterns, "special_tokens": special}
    print(json.dumps(described, indent=1, ensure_ascii=False))
