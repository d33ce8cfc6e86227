"""Assertions about a function that runs in another sandbox.

First the assertions run with a stand-in that agrees with everything, which tells most of the calls that they make. The
function answers these in its own sandbox. Then the assertions run again with the answers; a call that is new ends the
run, is answered, and so on. What crosses is text of Python literals: no code, no objects.
"""

import ast
import json
import secrets
from typing import Any

from glmcore.envs.sandbox.job import Job
from glmcore.envs.sandbox.limits import SandboxResult
from glmcore.envs.sandbox.pool import SandboxPool

MAX_ROUNDS = 16
"""Runs of the assertions: for calls whose arguments depend on earlier results."""
MAX_CALLS = 10_000

_JUDGE = '''
import ast, json, random, sys
answers = json.load(open("answers.json"))
path, nonce = sys.argv[1:]
calls = []

class Anything:
    """Agrees with everything."""
    def __bool__(self): return True
    def __iter__(self): return iter(())
    def __len__(self): return 1
    def __float__(self): return 0.0
    def __int__(self): return 0
    __index__ = __int__
    def __hash__(self): return 0
    def __repr__(self): return "Anything()"
    def __call__(self, *args, **kwargs): return self
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return self

def agree(self, *args): return True
def same(self, *args): return self
for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains"): setattr(Anything, f"__{name}__", agree)
for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"):
    setattr(Anything, f"__{name}__", same); setattr(Anything, f"__r{name}__", same)
for name in ("neg", "pos", "abs", "round", "getitem", "invert"): setattr(Anything, f"__{name}__", same)

class Unknown(BaseException):
    """A call without an answer."""

def candidate(*args, **kwargs):
    asked = repr((args, kwargs))
    if answers is None:
        calls.append(asked)
        return Anything()
    if asked not in answers:
        calls.append(asked)
        raise Unknown
    kind, value = answers[asked]
    if kind == "raised":
        raise getattr(__builtins__, value, None) or RuntimeError(value)
    return eval(value, {"inf": float("inf"), "nan": float("nan"), "set": set, "frozenset": frozenset})

class Tolerant(ast.NodeTransformer):
    """Assertions that are made and do not matter."""
    def visit_Assert(self, node):
        handler = ast.ExceptHandler(type=ast.Name("Exception", ast.Load()), name=None, body=[ast.Pass()])
        return ast.Try([ast.Expr(node.test)], [handler], [], [])

def compiled(file):
    tree = ast.parse(open(file).read(), file)
    return compile(ast.fix_missing_locations(Tolerant().visit(tree)) if answers is None else tree, file, "exec")

def run():
    space = {"__name__": "tests"}
    random.seed(0)
    exec(compiled("setup.py"), space)
    space[path] = space["candidate"] = candidate
    random.seed(0)
    exec(compiled("tests.py"), space)
    if "check" in space and path != "check":
        space["check"](candidate)

told = {"calls": calls, "failed": None}
try:
    run()
except Unknown:
    pass
except BaseException as error:
    told["failed"] = f"{type(error).__name__}: {error}"[:200]
print(nonce + json.dumps(told))
'''

_FUNCTION = """
import json, sys
calls = json.load(open("calls.json"))
out = open("answers.out", "w")
space = {"__name__": "solution"}
exec(compile(open("solution.py").read(), "solution", "exec"), space)
function = space[sys.argv[1]]
for asked in calls:
    args, kwargs = eval(asked, {"inf": float("inf"), "nan": float("nan"), "set": set, "frozenset": frozenset})
    try:
        told = ["returned", repr(function(*args, **kwargs))]
    except Exception as error:
        told = ["raised", type(error).__name__]
    out.write(json.dumps([asked, told]) + "\\n")
    out.flush()
"""


def run_assertions(pool: SandboxPool, code: str, entry_point: str, source: str, setup: str) -> str | None:
    """Judge a function of `code`; None if all assertions hold, else why not.

    Raises:
        SandboxError: A sandbox could not be started.
    """
    answers: dict[str, list[str]] | None = None
    for _ in range(MAX_ROUNDS):
        told = _judge(pool, entry_point, source, setup, answers)
        if isinstance(told, str):
            return told
        calls, failed = told
        if answers is not None and (failed is not None or not calls):
            return failed
        if len(calls) > MAX_CALLS:
            return f"the tests make more than {MAX_CALLS} calls"
        plain = [call for call in dict.fromkeys(calls) if _is_literal(call)]
        if answers is not None and not plain:
            return "the tests call the function with more than literals"
        found = _answer(pool, code, entry_point, plain)
        if isinstance(found, str):
            return found
        answers = (answers or {}) | found
    return f"the tests ask for one result after another, more than {MAX_ROUNDS} times"


def _judge(
    pool: SandboxPool, entry_point: str, source: str, setup: str, answers: dict[str, list[str]] | None
) -> tuple[list[str], str | None] | str:
    """Calls that have no answer yet, and the assertion that failed; or why there is no judgement."""
    nonce = secrets.token_hex(8)
    files = {"judge.py": _JUDGE, "tests.py": source, "setup.py": setup, "answers.json": json.dumps(answers)}
    result = pool.run(Job(["python3", "judge.py", entry_point, nonce], files=_encoded(files)))
    line = result.stdout.decode(errors="replace").rpartition(nonce)[2]
    try:
        told = json.loads(line)
        return [str(call) for call in told["calls"]], told["failed"]
    except (ValueError, KeyError, TypeError):
        return f"the tests did not end: {result.outcome.replace('_', ' ')}"


def _answer(pool: SandboxPool, code: str, entry_point: str, calls: list[str]) -> dict[str, list[str]] | str:
    """What the function gives for each call; or why it gives nothing."""
    if not calls:
        return {}
    files = {"function.py": _FUNCTION, "solution.py": code, "calls.json": json.dumps(calls)}
    job = Job(["python3", "function.py", entry_point], files=_encoded(files), wanted=["answers.out"])
    result = pool.run(job)
    found: dict[str, list[str]] = {}
    try:
        for line in result.files.get("answers.out", b"").decode().splitlines():
            asked, (kind, value) = json.loads(line)
            if kind == "returned" and not _is_literal(value):
                return "the function gives more than literals"
            found[str(asked)] = [str(kind), str(value)]
    except (ValueError, TypeError):
        return "the function gives nothing that can be read"
    return found if found.keys() >= set(calls) else _why(result)


def _why(result: SandboxResult) -> str:
    if result.outcome != "exited":
        return result.outcome.replace("_", " ")
    last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return last[0][:200] if last else "the program ended by itself"


def _is_literal(text: str) -> bool:
    """Whether text is a literal, `inf`, `nan`, `set()` and `frozenset({...})` included."""
    try:
        tree: Any = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    allowed = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.USub, ast.UAdd,
               ast.BinOp, ast.Add, ast.Sub, ast.Load)  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in ("set", "frozenset") or node.keywords:
                return False
        elif isinstance(node, ast.Name):
            if node.id not in ("inf", "nan", "set", "frozenset"):
                return False
        elif not isinstance(node, allowed):
            return False
    return True


def _encoded(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode(errors="replace") for name, text in files.items()}
