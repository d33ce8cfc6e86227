import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import order as oracle

from glmcore.data.builders.files import SourceFile, read_directory
from glmcore.data.builders.imports.graph import import_graph, order_files
from glmcore.data.builders.joined import cut_text, join_parts
from glmcore.data.builders.licence import find_licences, licence_of
from glmcore.data.builders.order import dependency_order
from glmcore.data.builders.redact import redact
from glmcore.data.builders.repository import file_documents, repository_documents
from glmcore.errors import DataError


@st.composite
def graphs(draw):
    size = draw(st.integers(0, 12))
    return [draw(st.lists(st.integers(0, size - 1), max_size=4)) for _ in range(size)]


@given(needs=graphs())
def test_the_order_agrees_with_the_twin_and_keeps_every_need_outside_a_circle(needs):
    order = dependency_order(needs)
    assert order == oracle.dependency_order(needs)
    place = {at: number for number, at in enumerate(order)}
    reach = oracle.reachable(needs)
    for at, row in enumerate(needs):
        for need in row:
            assert place[need] < place[at] or at in reach[need] or need == at


def test_a_chain_and_a_circle_of_thirty_thousand_need_no_recursion():
    size = 30_000
    assert dependency_order([[at + 1] for at in range(size - 1)] + [[]]) == list(range(size))[::-1]
    assert sorted(dependency_order([[(at + 1) % size] for at in range(size)])) == list(range(size))


def edges(texts):
    return {(path, target) for path, targets in import_graph(texts).items() for target in targets}


def test_python_imports_lead_to_files():
    texts = {
        "src/pkg/__init__.py": "",
        "src/pkg/base.py": "import os\nimport json\n",
        "src/pkg/json.py": "x = 1\n",
        "src/pkg/sub/__init__.py": "from ..base import Thing\nfrom . import leaf\n",
        "src/pkg/sub/leaf.py": "from pkg.base import (\n    A,  # (why)\n    B,\n)\nfrom ...nowhere import x\nfrom .... import y\n",
        "src/pkg/lazy.py": "def f():\n    import pkg.base\nclass A:\n    from pkg import sub\ntry:\n    import pkg.sub.leaf as l, pkg.json\nexcept ImportError:\n    pass\n",
        "tests/test_pkg.py": "import pkg.base\nfrom pkg import base, sub, VERSION\nimport helper\nfrom pkg.sub.missing import z\n",
        "tests/helper.py": "import sys; import pkg\n",
        "scripts/run.py": "import helper\nimport run\n",
        "ns/part/mod.py": "from ns.part import other\nfrom ns.part.other import q\n",
        "ns/part/other.py": "",
    }
    assert edges(texts) == {
        ("src/pkg/sub/__init__.py", "src/pkg/base.py"),
        ("src/pkg/sub/__init__.py", "src/pkg/sub/leaf.py"),
        ("src/pkg/sub/leaf.py", "src/pkg/base.py"),
        ("src/pkg/lazy.py", "src/pkg/sub/leaf.py"),
        ("src/pkg/lazy.py", "src/pkg/json.py"),
        ("tests/test_pkg.py", "src/pkg/base.py"),
        ("tests/test_pkg.py", "src/pkg/sub/__init__.py"),
        ("tests/test_pkg.py", "src/pkg/__init__.py"),
        ("tests/test_pkg.py", "tests/helper.py"),
        ("ns/part/mod.py", "ns/part/other.py"),
    }


def test_javascript_and_typescript_imports_lead_to_files():
    texts = {
        "package.json": '{"name": "root", "workspaces": ["packages/*"], "imports": {"#conf": "./conf.js"}}',
        "tsconfig.base.json": '{"compilerOptions": {"baseUrl": ".", "paths": {"@app/*": ["app/*", "old/*"],}}, /* c */}',
        "app/tsconfig.json": '// comment\n{"extends": "../tsconfig.base"}',
        "app/main.ts": """import React, {
  useState,
} from 'react';
import { a } from './a.js';
import type { T } from "@app/types";
import './side';
export * from '../lib';
const c = require('#conf'), d = require("@scope/tool");
const later = import('./later');
import x from '@scope/tool/deep';
import y from '@scope/tool/feature';
import gone from './gone';
import conf from "app/a";
""",
        "app/a.ts": "export const a = 1; // from './b'\n",
        "app/types.ts": "export interface T { kind: './side' }\n",
        "app/side.tsx": "",
        "app/later.ts": "",
        "lib/index.js": "import m from './m.mjs'\n",
        "lib/m.mjs": "",
        "conf.js": "",
        "packages/tool/package.json": """{"name": "@scope/tool", "main": "dist/index.js",
            "exports": {".": {"import": "./dist/index.mjs"}, "./feature": {"node": {"default": "./dist/esm/feature.js"}}}}""",
        "packages/tool/src/index.ts": "export {deep} from './deep'\n",
        "packages/tool/src/deep.ts": "",
        "packages/tool/src/feature.ts": "import {deep} from '@scope/tool/deep';\n",
    }
    assert {edge for edge in edges(texts) if edge[0] == "app/main.ts"} == {
        ("app/main.ts", target)
        for target in (
            "app/a.ts",
            "app/types.ts",
            "app/side.tsx",
            "lib/index.js",
            "conf.js",
            "packages/tool/src/index.ts",
            "packages/tool/src/deep.ts",
            "packages/tool/src/feature.ts",
        )
    }
    assert ("lib/index.js", "lib/m.mjs") in edges(texts)
    assert ("packages/tool/src/index.ts", "packages/tool/src/deep.ts") in edges(texts)
    assert ("packages/tool/src/feature.ts", "packages/tool/src/deep.ts") in edges(texts)


def test_rust_modules_and_uses_lead_to_files():
    texts = {
        "Cargo.toml": '[workspace]\nmembers = ["a", "b"]\n',
        "a/Cargo.toml": '[package]\nname = "my-a"\n',
        "a/src/lib.rs": "mod error;\npub mod deep;\npub use error::Error;\npub use self::deep::{Leaf as Blade, inner};\n",
        "a/src/error.rs": "pub struct Error;\n",
        "a/src/deep/mod.rs": 'pub mod inner;\n#[path = "odd name.rs"]\nmod odd;\nuse crate::Error;\npub struct Leaf;\n',
        "a/src/deep/inner.rs": "use super::Leaf;\nuse std::fmt;\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n",
        "a/src/deep/odd name.rs": "",
        "a/tests/it.rs": "mod common;\nuse my_a::{deep::{self, inner}, Error};\nuse unknown::x;\n",
        "a/tests/common/mod.rs": "",
        "b/Cargo.toml": '[package]\nname = "b"\n\n[lib]\nname = "bee"\npath = "lib/top.rs"\n',
        "b/lib/top.rs": "mod part;\nuse my_a::Blade;\n",
        "b/lib/part.rs": "",
        "b/src/bin/tool.rs": "use bee::part;\n",
    }
    assert edges(texts) == {
        ("a/src/lib.rs", "a/src/error.rs"),
        ("a/src/lib.rs", "a/src/deep/mod.rs"),
        ("a/src/lib.rs", "a/src/deep/inner.rs"),
        ("a/src/deep/mod.rs", "a/src/deep/inner.rs"),
        ("a/src/deep/mod.rs", "a/src/deep/odd name.rs"),
        ("a/src/deep/mod.rs", "a/src/error.rs"),
        ("a/src/deep/inner.rs", "a/src/deep/mod.rs"),
        ("a/tests/it.rs", "a/tests/common/mod.rs"),
        ("a/tests/it.rs", "a/src/deep/mod.rs"),
        ("a/tests/it.rs", "a/src/deep/inner.rs"),
        ("a/tests/it.rs", "a/src/error.rs"),
        ("b/lib/top.rs", "b/lib/part.rs"),
        ("b/lib/top.rs", "a/src/deep/mod.rs"),
        ("b/src/bin/tool.rs", "b/lib/part.rs"),
    }


def test_go_packages_come_before_what_imports_them():
    texts = {
        "go.mod": "module example.org/app\n\ngo 1.22\n",
        "a_main.go": 'package main\n\nimport (\n\t"fmt"\n\tz "example.org/app/util" // why\n)\n\nvar s = "example.org/app/late"\n',
        "late/late.go": "package late\n",
        "util/one.go": 'package util\n\nimport "example.org/app/base"\n',
        "util/two.go": "package util\n",
        "util/one_test.go": 'package util_test\n\nimport "example.org/app"\n',
        "base/base.go": "package base\n",
        "tools/go.mod": "module example.org/app/tools\n",
        "tools/gen/gen.go": 'package gen\n\nimport "example.org/app/tools/lib"\n',
        "tools/lib/lib.go": "package lib\n",
    }
    order = order_files(texts)
    assert set(order) == set(texts)
    for later, earlier in (
        ("a_main.go", "util/one.go"),
        ("a_main.go", "util/two.go"),
        ("util/one.go", "base/base.go"),
        ("util/one_test.go", "util/two.go"),
        ("util/one_test.go", "a_main.go"),
        ("tools/gen/gen.go", "tools/lib/lib.go"),
    ):
        assert order.index(earlier) < order.index(later), (earlier, later)
    assert order.index("a_main.go") < order.index("late/late.go")  # a string is no import: path order


def test_c_includes_lead_to_files():
    texts = {
        "include/lib/api.h": "#pragma once\n# include <stdio.h>\n#include <lib/types.h>\n",
        "include/lib/types.h": "",
        "src/api.c": '#include "lib/api.h"\n#include "local.h"\n#include "../up.h"\n#include "missing.h"\n// #include "no.h"\n',
        "src/local.h": "",
        "src/no.h": "",
        "up.h": '#include "cycle.h"\n',
        "cycle.h": '#include "up.h"\n',
        "other/local.h": "",
        "other/stdio.h": "",
        "kernels/k.cu": '#include "k.cuh"\n',
        "kernels/k.cuh": "",
    }
    assert edges(texts) == {
        ("include/lib/api.h", "include/lib/types.h"),
        ("src/api.c", "include/lib/api.h"),
        ("src/api.c", "src/local.h"),
        ("src/api.c", "up.h"),
        ("up.h", "cycle.h"),
        ("cycle.h", "up.h"),
        ("kernels/k.cu", "kernels/k.cuh"),
    }
    order = order_files(texts)
    assert abs(order.index("up.h") - order.index("cycle.h")) == 1


@given(text=st.text(alphabet="import from{}();'\"\\/.*#use::mod\n ,_a", max_size=300))
def test_no_text_makes_the_search_for_imports_fail(text):
    for suffix in (".py", ".ts", ".rs", ".go", ".c"):
        assert set(order_files({f"a{suffix}": text, f"b{suffix}": text})) == {f"a{suffix}", f"b{suffix}"}
    order_files(
        {"package.json": text, "tsconfig.json": text, "Cargo.toml": text, "go.mod": text, "a.ts": "import '#x'"}
    )


HOSTILE = {
    "a.py": "from a import (\n" * 5_000,
    "b.ts": "import\n" * 5_000,
    "c.rs": "use a\n" * 5_000 + "use " + "{" * 1_900 + ";",
    "d.go": "import (\n" * 5_000,
    "package.json": "/*" * 30_000,
    "Cargo.toml": "\n" * 300_000 + "[package]" * 1_000,
    "e.txt": "-----BEGIN PRIVATE KEY-----" * 3_000 + "eyJ-" * 5_000,
}


def test_hostile_files_take_no_quadratic_time():
    order_files(HOSTILE)
    find_licences([SourceFile(path, text) for path, text in HOSTILE.items()])
    redact(HOSTILE["e.txt"])


@pytest.fixture
def project(tmp_path):
    files = {
        "pkg/__init__.py": "",
        "pkg/app.py": "from pkg.core import run\n\nrun()\n",
        "pkg/core.py": "def run():\n    return 'ada@lovelace.org'\n",
        "pkg/\u4f60\u597d.py": "from pkg import core\n",
        "LICENSE": "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\nof this software\n",
        "package-lock.json": "{}\n",
        "min.js": "var a=1;" * 1_000 + "\n",
        "schema_pb2.py": "x = 1\n",
        ".env": "PASSWORD=x\n",
        "gen.go": "// Code generated by tool. DO NOT EDIT.\npackage gen\n",
        "node_modules/x/index.js": "x\n",
        "vendor/y.go": "package y\n",
        "cache/CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
        "cache/z.py": "z = 1\n",
        "numbers.json": "1,\n" * 30_000,
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    (tmp_path / "image.dat").write_bytes(b"a\0b")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "pkg/link.py").symlink_to("core.py")
    return tmp_path


def git(directory, *arguments):
    identity = ["-c", "user.name=N", "-c", "user.email=n@n.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_directory_becomes_one_document_and_what_is_left_out_is_told(project):
    rejects = {}
    [document] = repository_documents(project, name="demo", on_reject=rejects.__setitem__)
    assert document.id == "demo#0"
    assert document.licence == "MIT"
    paths = [line.removeprefix("# file: ") for line in document.text.splitlines() if line.startswith("# file: ")]
    assert paths == ["LICENSE", "pkg/core.py", "pkg/app.py", "pkg/\u4f60\u597d.py"]
    assert "# file: pkg/core.py\ndef run():\n    return '<EMAIL>'\n" in document.text
    reasons = {
        "demo/package-lock.json": "lock",
        "demo/min.js": "a line of",
        "demo/schema_pb2.py": "generated",
        "demo/.env": "secrets",
        "demo/gen.go": "generated",
        "demo/node_modules": "vendored",
        "demo/vendor": "vendored",
        "demo/cache": "cache",
        "demo/numbers.json": "bytes",
        "demo/image.dat": "binary",
        "demo/latin.txt": "not UTF-8",
        "demo/loop": "a link",
        "demo/pkg/link.py": "a link",
        "demo/pkg/__init__.py": "empty",
    }
    assert rejects.keys() == reasons.keys()
    for place, reason in reasons.items():
        assert reason in rejects[place], place


def test_a_commit_gives_the_same_document_as_its_checkout_whatever_the_repositorys_settings(project, tmp_path_factory):
    [from_directory] = repository_documents(project, name="demo", on_reject=lambda *_: None)
    git(project, "init", "--quiet")
    git(project, "add", "--all", "--force")
    git(project, "rm", "--quiet", "-r", "--cached", "cache")
    git(project, "commit", "--quiet", "--message", "all")
    mark = tmp_path_factory.mktemp("mark") / "ran"
    git(project, "config", "core.fsmonitor", f"touch {mark}")
    git(project, "config", "diff.external", f"touch {mark}")
    (project / "pkg/core.py").write_text("changed = 1\n")
    rejects = {}
    [document] = repository_documents(project, commit="HEAD", name="demo", on_reject=rejects.__setitem__)
    paths = [line for line in document.text.splitlines() if line.startswith("# file: ")]
    assert document == from_directory
    assert len(paths) == 4
    assert "demo/vendor/y.go" in rejects
    assert not mark.exists()
    with pytest.raises(DataError, match="nowhere"):
        list(repository_documents(project, commit="nowhere", on_reject=lambda *_: None))


def test_a_file_that_is_no_directory_is_refused(project):
    with pytest.raises(DataError, match="is no directory"):
        list(repository_documents(project / "LICENSE", on_reject=lambda *_: None))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), max_length=st.integers(30, 120), tokens=st.booleans()
)
def test_documents_are_bounded_and_hold_all_text_once(sizes, max_length, tokens):
    files = [
        SourceFile(f"f{at:02}.txt", "".join(f"{at:02}{line:03}\n" for line in range(size)))
        for at, size in enumerate(sizes)
    ]
    measure = (lambda text: -(-len(text) // 3)) if tokens else len
    documents = list(file_documents(files, name="n", source="s", max_length=max_length, measure=measure))
    assert all(measure(document.text) <= max_length for document in documents)
    lines = [line for document in documents for line in document.text.splitlines() if line and not line.startswith("#")]
    assert lines == [line for file in files for line in file.text.splitlines()]
    assert all(document.text.startswith("# file: ") for document in documents)


@given(text=st.text(alphabet="ab\n", max_size=200), max_length=st.integers(1, 30))
def test_a_cut_text_is_the_same_when_joined(text, max_length):
    pieces = cut_text(text, max_length, len)
    assert "".join(pieces) == text
    assert all(len(piece) <= max_length for piece in pieces)
    assert "".join(join_parts(pieces, max_length, len)) == text


def test_ten_thousand_files_of_five_languages_are_ordered():
    texts = {}
    for at in range(2_000):
        following = (at + 1) % 2_000 if at % 500 else 0
        texts[f"p/m{at}.py"] = f"from p.m{following} import x\nimport os, sys\n" + "x = 1\n" * 20
        texts[f"t/m{at}.ts"] = f"import {{x}} from './m{following}';\n" + "export const x = 1;\n" * 20
        texts[f"c/src/m{at}.rs"] = f"use crate::m{following}::x;\n" + "pub fn x() {}\n" * 20
        texts[f"g/m{at}/m.go"] = f'package m\n\nimport "e.org/g/m{following}"\n' + "// x\n" * 20
        texts[f"h/m{at}.h"] = f'#include "m{following}.h"\n' + "int x;\n" * 20
    texts |= {
        "p/__init__.py": "",
        "c/Cargo.toml": '[package]\nname = "c"\n',
        "c/src/lib.rs": "",
        "g/go.mod": "module e.org/g\n",
    }
    graph = import_graph(texts)
    order = order_files(texts)
    assert len(order) == len(texts) == 10_004
    assert sum(map(len, graph.values())) >= 5 * 1_999
    place = {path: at for at, path in enumerate(order)}
    assert place["p/m499.py"] > place["p/m500.py"] > place["p/m0.py"]


def test_the_checkout_itself_is_ordered_by_its_imports(request):
    root = request.config.rootpath
    texts = {file.path: file.text for file in read_directory(root / "python", lambda *_: None)}
    order = order_files(texts)
    assert (
        order.index("glmcore/errors.py") < order.index("glmcore/tokenizer.py") < order.index("glmcore/data/encode.py")
    )
    graph = import_graph(texts)
    assert "glmcore/data/documents.py" in graph["glmcore/data/encode.py"]
    rank = {path: at for at, path in enumerate(order)}
    assert all(rank[target] < rank[path] for path in order for target in graph[path])  # our layers have no circles


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991", "GPL-2.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 2.1, February 1999", "LGPL-2.1"),
        ("Mozilla Public License Version 2.0", "MPL-2.0"),
        (
            "Redistribution and use in source and binary forms, with or\nwithout modification, are permitted",
            "BSD-2-Clause",
        ),
        ("Do what you like.", None),
    ],
)
def test_licence_texts_are_told_apart(text, licence):
    assert licence_of(text) == licence


def test_licences_of_tags_and_manifests_are_joined():
    files = [
        SourceFile("Cargo.toml", '[package]\nlicense = "MIT OR Apache-2.0"\n'),
        SourceFile("x.c", "/* SPDX-License-Identifier: GPL-2.0-only */\n"),
        SourceFile("y.c", "// SPDX-License-Identifier: ((GPL-2.0-only))\n"),
    ]
    assert find_licences(files) == "GPL-2.0-only AND (MIT OR Apache-2.0)"
    assert find_licences(files[1:]) == "GPL-2.0-only"
    assert find_licences([]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail ada@lovelace.org, or b.c+d@e-f.co.uk!", "mail <EMAIL>, or <EMAIL>!"),
        ("git@github.com:o/r.git user@example.com", "git@github.com:o/r.git user@example.com"),
        ("@decorator a@b 3@4.x x = y @ z", "@decorator a@b 3@4.x x = y @ z"),
        ("https://user:pw@host.org/x", "https://user:pw@host.org/x"),
        ("x" * 65 + "@host.org a@b.org@c.org", "x" * 65 + "@host.org <EMAIL>@c.org"),
        ("key AKIAABCDEFGHIJKLMNOP end", "key <KEY> end"),
        ("t = 'ghp_" + "a" * 36 + "'", "t = '<KEY>'"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "<KEY>\nx"),
        ("-----BEGIN PRIVATE KEY----- never ends", "-----BEGIN PRIVATE KEY----- never ends"),
    ],
)
def test_addresses_and_keys_are_replaced(text, expected):
    assert redact(text) == expected


def test_a_name_that_is_no_utf_8_is_told(tmp_path):
    name = os.fsdecode(b"bad\xff.py")
    (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "good.py").write_text("x = 1\n")
    rejects = []
    [document] = repository_documents(tmp_path, name="n", on_reject=lambda *told: rejects.append(told))
    assert document.text == "# file: good.py\nx = 1\n\n"
    assert rejects == [("n/bad\\udcff.py", "its name is not UTF-8")]
