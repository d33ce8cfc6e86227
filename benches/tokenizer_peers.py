"""Tokenizers that the bench compares, each behind the same four functions, each in a process of its own."""

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], Any]


class Peer:
    """What a worker asks of an implementation; None where it has no such function."""

    encode_docs: Encode
    """Documents to a flat array, or to what comes nearest."""
    encode_list: Callable[[str], Any] | None = None
    decode_list: Callable[[list[int]], Any] | None = None
    decode_array: Callable[[Any], Any] | None = None

    def ids_of(self, encoded: Any) -> Any:
        """The ids of `encode_docs` as one array."""
        return encoded


class Glmcore(Peer):
    """This project."""

    def __init__(self, place: str) -> None:
        from glmcore import Tokenizer

        self.tokenizer = Tokenizer.from_file(place)
        self.encode_docs = lambda docs: self.tokenizer.encode_batch(docs, num_threads=1)
        self.encode_list = self.tokenizer.encode
        self.decode_list = self.decode_array = self.tokenizer.decode

    def ids_of(self, encoded: Any) -> Any:
        return encoded.ids


class HuggingFace(Peer):
    """The `tokenizers` package, one text at a time: the batch call uses all cores."""

    def __init__(self, place: str) -> None:
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(place)
        self.encode_docs = lambda docs: [self.tokenizer.encode(doc, add_special_tokens=False).ids for doc in docs]
        self.encode_list = lambda text: self.tokenizer.encode(text, add_special_tokens=False).ids
        self.decode_list = self.tokenizer.decode

    def ids_of(self, encoded: Any) -> Any:
        return np.concatenate([np.asarray(ids) for ids in encoded])


class Tiktoken(Peer):
    """The `tiktoken` package with the ranks of the vocabulary."""

    def __init__(self, place: str) -> None:
        import tiktoken

        data = json.loads(Path(place).read_text(encoding="utf-8"))
        chars = _byte_alphabet()
        added = {token["content"] for token in data["added_tokens"]}
        vocab = data["model"]["vocab"]
        ranks = {bytes(chars[c] for c in token): rank for token, rank in vocab.items() if token not in added}
        pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        self.tokenizer = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.encode_docs = lambda docs: [self.tokenizer.encode_to_numpy(doc, disallowed_special=()) for doc in docs]
        self.encode_list = self.tokenizer.encode_ordinary
        self.decode_list = self.decode_array = self.tokenizer.decode

    def ids_of(self, encoded: Any) -> Any:
        return np.concatenate(encoded)


class Gigatoken(Peer):
    """The `gigatoken` package."""

    def __init__(self, place: str) -> None:
        import gigatoken

        self.tokenizer = gigatoken.Tokenizer(place)
        self.encode_docs = lambda docs: self.tokenizer.encode_batch(docs, parallel=False)
        self.encode_list = lambda text: self.tokenizer.encode(text).tolist()
        self.decode_list = self.decode_array = self.tokenizer.decode

    def ids_of(self, encoded: Any) -> Any:
        import awkward

        return awkward.to_numpy(awkward.flatten(encoded))


class Fastokens(Peer):
    """The `fastokens` package."""

    def __init__(self, place: str) -> None:
        from fastokens._native import Tokenizer

        self.tokenizer = Tokenizer.from_file(place)
        self.encode_docs = self.tokenizer.encode_batch_flat
        self.encode_list = lambda text: self.tokenizer.encode(text).ids
        self.decode_list = self.tokenizer.decode

    def ids_of(self, encoded: Any) -> Any:
        return np.frombuffer(encoded[0], np.uint32)


PEERS: dict[str, type[Any]] = {
    "glmcore": Glmcore,
    "tokenizers": HuggingFace,
    "tiktoken": Tiktoken,
    "gigatoken": Gigatoken,
    "fastokens": Fastokens,
}
MODULES = {name: name for name in PEERS}


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _resident_mb() -> float:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize() / 1e6


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def serve(name: str, place: str, connection: Connection) -> None:
    """Answer requests of the bench until it closes the connection."""
    for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import importlib

    importlib.import_module(MODULES[name])
    before = _resident_mb()
    started = time.perf_counter()
    try:
        peer: Peer = PEERS[name](place)
    except Exception as error:  # any failure of a peer is a result
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(
        {"load_s": time.perf_counter() - started, "load_mb": _resident_mb() - before, "rss_mb": _resident_mb()}
    )
    while True:
        try:
            kind, data = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_answer(peer, kind, data))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")


def _answer(peer: Peer, kind: str, data: Any) -> Any:
    if kind == "docs":
        seconds, encoded = _timed(lambda: peer.encode_docs(data))
        ids = np.ascontiguousarray(peer.ids_of(encoded), dtype=np.uint32)
        return seconds, hashlib.sha256(ids.tobytes()).hexdigest(), len(ids)
    if kind == "list":
        encode = peer.encode_list
        if encode is None:
            return None
        seconds, lists = _timed(lambda: [encode(text) for text in data])
        del lists
        return seconds
    if kind == "decode_list":
        decode = peer.decode_list
        return None if decode is None else _timed(lambda: [decode(ids) for ids in data])[0]
    if kind == "decode_array":
        decode = peer.decode_array
        arrays = [np.asarray(ids, dtype=np.int32) for ids in data]
        if decode is None:
            return None
        try:
            return _timed(lambda: [decode(ids) for ids in arrays])[0]
        except TypeError:
            return None
    return _resident_mb()
