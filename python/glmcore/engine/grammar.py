"""Constraints as grammars in the Lark dialect of llguidance.

The tags of a tool call are single tokens, which a grammar names by their ids; text and JSON hold no such token.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from glmcore.engine.constrain import Constraint
from glmcore.errors import RequestError
from glmcore.tokenizer import Tokenizer

TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
WHITESPACE = r"\n? {1,32}|\n"
"""What may stand between the parts of JSON."""
ANY_TEXT = "/(?s:.+)/"
UNSUPPORTED_AT_ROOT = (
    *("allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas", "dependencies"),
    *("minProperties", "maxProperties", "patternProperties", "propertyNames", "$dynamicRef"),
)
"""Keywords of a tool's parameters that relate arguments to each other."""
ANNOTATIONS = frozenset(("type", "title", "description", "default", "examples", "deprecated", "$comment", "format"))
TEXT_KEYWORDS = frozenset(("pattern", "minLength", "maxLength", "enum", "const"))


def lark_of(constraint: Constraint, tokenizer: Tokenizer) -> str:
    """The grammar of a constraint.

    Raises:
        RequestError: A schema asks for something that cannot be enforced, or the tokenizer has no tool tags.
    """
    lead = '"\\n"? ' if constraint.thinking != "none" or constraint.kind != "regex" else ""
    if constraint.kind == "json_schema":
        return f"start: {lead}value\nvalue: {_json_rule(json.loads(constraint.source), {}, constraint.lenient)}\n"
    if constraint.kind == "regex":
        return f"start: {lead}TEXT\nTEXT: {_regex(constraint.source)}\n"
    return _ToolGrammar(tokenizer, constraint.lenient).of(json.loads(constraint.source))


class _ToolGrammar:
    """Collects the rules of tool calls."""

    def __init__(self, tokenizer: Tokenizer, lenient: bool) -> None:
        missing = [tag for tag in TAGS if tag not in tokenizer.special_tokens]
        if missing:
            raise RequestError(f"tool calls need a tokenizer with the token {missing[0]}")
        self._tag = {tag: f"<[{tokenizer.token_to_id(tag)}]>" for tag in TAGS}
        self._lenient = lenient
        self._rules: list[str] = []

    def of(self, source: Mapping[str, Any]) -> str:
        names = [self._tool(tool["name"], tool["parameters"]) for tool in source["tools"]]
        call = f"{self._tag['<tool_call>']} ({' | '.join(names)}) {self._tag['</tool_call>']}"
        calls = 'call ("\\n" call)*' if source["parallel"] else "call"
        start = f"text? ({calls})?" if source["optional"] else f'"\\n"? {calls}'
        return "\n".join([f"start: {start}", f"call: {call}", f"text: {ANY_TEXT}", *self._rules, ""])

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _tool(self, name: str, parameters: Mapping[str, Any] | bool) -> str:
        where = f"the parameters of tool {name!r}"
        root = _resolved({"type": "object"} if isinstance(parameters, bool) else parameters, where)
        if root.get("type", "object") != "object":
            raise RequestError(f"{where} must be an object, not {root['type']!r}")
        found = next((keyword for keyword in UNSUPPORTED_AT_ROOT if keyword in root), None)
        if found and not self._lenient:
            raise RequestError(f"{where} have {found!r}, which cannot be enforced between arguments")
        properties, required = root.get("properties", {}), root.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise RequestError(f"{where} have no 'properties' object or no 'required' list")
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        declared = {**properties, **{key: True for key in required if key not in properties}}
        parts = [_literal(f"{name}\n")]
        for key, schema in declared.items():
            if any(tag in key for tag in TAGS):
                raise RequestError(f"{where} have the key {key!r}, which holds a tag of the format")
            value = self._value(schema, shared, f"argument {key!r} of tool {name!r}")
            argument = self._rule(self._argument(_literal(key), value))
            parts.append(argument if key in required else f"{argument}?")
        others = root.get("additionalProperties", True)
        if not declared and others is not False:
            value = self._rule(_json_rule(others, shared, self._lenient))
            parts.append(self._rule(self._argument(self._terminal(r"/[^<\n]+/"), value)) + "*")
        return self._rule(" ".join(parts))

    def _argument(self, key: str, value: str) -> str:
        key = f"{self._tag['<arg_key>']} {key} {self._tag['</arg_key>']}"
        value = f"{self._tag['<arg_value>']} {value} {self._tag['</arg_value>']}"
        return f'{key} "\\n" {value} "\\n"'

    def _value(self, schema: Any, shared: Mapping[str, Any], where: str) -> str:
        """Rule of a value: JSON, but for a declared string, which is text as it is."""
        if not isinstance(schema, Mapping) or schema.get("type") != "string":
            return self._rule(_json_rule(schema, shared, self._lenient))
        unknown = set(schema) - ANNOTATIONS - TEXT_KEYWORDS
        if unknown and not self._lenient:
            raise RequestError(f"{where} is a string with {min(unknown)!r}, which cannot be enforced in text")
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is not None:
            texts = [text for text in choices if isinstance(text, str)]
            if not texts or any(tag in text for text in texts for tag in TAGS):
                raise RequestError(f"{where} has no value that text of the format can hold")
            body = " | ".join(_literal(text) for text in texts if text) or '"\\n"'
            return f"({body})" + ("?" if "" in texts else "")
        conditions = []
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if "pattern" in schema:
            conditions.append(_search_pattern(schema["pattern"], where))
        if least or most is not None:
            conditions.append(f"/(?s:.{{{least},{'' if most is None else most}}})/")
        if not conditions:
            return "text?"
        nullable = not least and ("pattern" not in schema or _finds_in_nothing(schema["pattern"]))
        return self._terminal(" & ".join([*conditions, ANY_TEXT])) + ("?" if nullable else "")


def _json_rule(schema: Any, shared: Mapping[str, Any], lenient: bool) -> str:
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, Mapping):
        raise RequestError(f"a JSON schema is an object or a bool, got {schema!r}")
    options = {
        "whitespace_pattern": WHITESPACE,
        # Escapes by number could name half of a surrogate pair, which is no text.
        "json_allowed_escapes": 'nrbtf\\"',
        "lenient": lenient,
    }
    return "%json " + json.dumps({**shared, **schema, "x-guidance": options}, ensure_ascii=False)


def _resolved(schema: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The schema with a reference at its root replaced by what it names."""
    for _ in range(16):
        reference = schema.get("$ref")
        if reference is None:
            return schema
        found: Any = schema
        try:
            for part in str(reference).removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/").replace("~0", "~")]
        except (KeyError, TypeError):
            raise RequestError(f"{where} refer to {reference!r}, which is not there") from None
        kept = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        schema = {**kept, **found}
    raise RequestError(f"{where} refer to themselves")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(pattern: str) -> str:
    """A pattern between slashes."""
    return "/(?:" + re.sub(r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), pattern) + ")/"


def _search_pattern(pattern: Any, where: str) -> str:
    """A pattern of JSON Schema, which need not match the whole text unless it is anchored."""
    if not isinstance(pattern, str):
        raise RequestError(f"{where} has the pattern {pattern!r}, which is no text")
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", pattern, flags=re.DOTALL)
    inner = plain.removeprefix("^").removesuffix("$")
    if "^" in inner or "$" in inner or ("|" in inner and len(inner) < len(plain)):
        raise RequestError(f"{where} has the pattern {pattern!r}: anchors are enforced at its two ends alone")
    before = "" if plain.startswith("^") else "(?s:.*)"
    after = "" if plain.endswith("$") else "(?s:.*)"
    body = pattern.removeprefix("^")
    return _regex(f"{before}(?:{body.removesuffix('$') if not after else body}){after}")


def _finds_in_nothing(pattern: str) -> bool:
    try:
        return re.search(pattern, "") is not None
    except re.error:
        return False
