"""Licences of a repository, by the texts, tags and manifests that name them."""

import re
from collections.abc import Iterable

from glmcore.data.builders.files import SourceFile

_FILE = re.compile(r"^(licen[cs]e|copying|unlicense|notice)([-._].*)?$", re.IGNORECASE)
_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+() -]*[\w.+)])")
_WORD = re.compile(r"\b(?:and|or|with)\b", re.IGNORECASE)
_MANIFEST = re.compile(r'^[ \t]*"?licen[cs]e"?\s*[:=]\s*(?:\{\s*text\s*=\s*)?"([\w.+() /-]{2,80})"', re.MULTILINE)
_MANIFESTS = ("Cargo.toml", "pyproject.toml", "package.json", "composer.json", "setup.cfg")
_TEXTS = (
    ("Apache-2.0", "apache license version 2.0"),
    ("AGPL-3.0", "gnu affero general public license version 3"),
    ("LGPL-3.0", "gnu lesser general public license version 3"),
    ("LGPL-2.1", "gnu lesser general public license version 2.1"),
    ("GPL-3.0", "gnu general public license version 3"),
    ("GPL-2.0", "gnu general public license version 2"),
    ("MPL-2.0", "mozilla public license version 2.0"),
    ("EPL-2.0", "eclipse public license - v 2.0"),
    ("BSL-1.0", "boost software license - version 1.0"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("PSF-2.0", "python software foundation license version 2"),
    ("Zlib", "this software is provided 'as-is', without any express or implied warranty"),
    ("ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"),
    ("MIT", "permission is hereby granted, free of charge, to any person obtaining a copy of this software"),
)
"""Words of each licence's text; the first that fits counts."""
_BSD = "redistribution and use in source and binary forms, with or without modification"
_BSD_THIRD = re.compile(r"neither the names? of|may not be used to endorse")
_MAX_TAGGED_CHARS = 4_000
"""Beginning of a file in which its tag stands."""


def find_licences(files: Iterable[SourceFile]) -> str | None:
    """SPDX identifiers found in licence texts, manifests and `SPDX-License-Identifier` tags, joined by ` AND `.

    Whether a version is "only" or "or later" is not told apart for texts. None where nothing was found, which does not
    mean that the code is free to use.
    """
    found: set[str] = set()
    for file in files:
        name = file.path.rpartition("/")[2]
        if _FILE.match(name):
            licence = licence_of(file.text)
            found |= {licence} if licence else set()
        elif name in _MANIFESTS:
            found |= {match[1].replace("/", " OR ") for match in _MANIFEST.finditer(file.text)}
        found |= {_plain(match[1]) for match in _TAG.finditer(file.text[:_MAX_TAGGED_CHARS])}
    found.discard("")
    return " AND ".join(f"({name})" if " OR " in name and len(found) > 1 else name for name in sorted(found)) or None


def licence_of(text: str) -> str | None:
    """SPDX identifier of a licence's text; None if it is not one of the well-known ones."""
    words = " ".join(text.lower().replace(",", " ,").split()).replace(" ,", ",")
    plain = words.replace("license, version", "license version").replace("apache license, ", "apache license ")
    for name, sign in _TEXTS:
        if sign in plain:
            return name
    if _BSD in plain:
        return "BSD-3-Clause" if _BSD_THIRD.search(plain) else "BSD-2-Clause"
    return None


def _plain(tag: str) -> str:
    """A tag without the brackets around all of it, its words in capitals."""
    tag = _WORD.sub(lambda match: match[0].upper(), " ".join(tag.split()))
    while tag.startswith("(") and tag.endswith(")") and _is_one(tag[1:-1]):
        tag = tag[1:-1].strip()
    return tag


def _is_one(inside: str) -> bool:
    """Whether the brackets of a text close each other."""
    depth = 0
    for char in inside:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            return False
    return depth == 0
