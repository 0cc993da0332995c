"""What a SQL statement names, by DuckDB's own parser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from model.inputs import InputError, one_line

_EXTRACTS = {"STRUCT_EXTRACT", "ARRAY_EXTRACT"}  # types of expressions that take a field of a struct
_WHOLE = {"SUBQUERY", "WINDOW"}  # classes of expressions whose value depends on other rows


@dataclass(frozen=True)
class Mentioned:
    """What a statement names.

    columns: paths as they are written ("quality", "sharpness"), parameters of lambdas left out; inner: those of them
    that only subqueries have; fields: of structs, as in quality['sharpness']; tables: after FROM; aliases: (table, its
    name in the statement), lower case; functions: lower case; star: whether it has a `*`; whole: whether other rows may
    decide about a row; limited: whether it has a LIMIT.
    """

    columns: frozenset[tuple[str, ...]]
    inner: frozenset[tuple[str, ...]]
    fields: frozenset[str]
    tables: frozenset[str]
    aliases: frozenset[tuple[str, str]]
    functions: frozenset[str]
    star: bool
    whole: bool
    limited: bool


def parse(sql: str, what: str) -> Mentioned:
    """What one SELECT statement names. what: as errors call it. Raises InputError for anything but one SELECT."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        row = connection.execute("select json_serialize_sql(?::varchar)", [sql]).fetchone()
    parsed = json.loads(row[0] if row else "{}")
    if parsed.get("error"):
        if parsed.get("error_type") == "not implemented":
            raise InputError(f"{what}: it can only be one SELECT, which reads the dataset and changes nothing")
        raise InputError(f"{what}: {one_line(parsed['error_message'])}")
    if len(parsed["statements"]) != 1:
        raise InputError(f"{what}: {len(parsed['statements'])} statements; give one SELECT")
    names = _Names()
    names.visit(parsed["statements"])
    return Mentioned(
        frozenset(names.outer | names.inner),
        frozenset(names.inner - names.outer),
        frozenset(names.fields),
        frozenset(name for name, _ in names.tables),
        frozenset((name.lower(), (alias or name).lower()) for name, alias in names.tables),
        frozenset(names.functions),
        "STAR" in names.classes,
        bool(names.classes & _WHOLE),
        names.limited,
    )


class _Names:
    """What is named in a statement that DuckDB has parsed."""

    def __init__(self) -> None:
        self.outer: set[tuple[str, ...]] = set()
        self.inner: set[tuple[str, ...]] = set()  # in subqueries
        self.fields: set[str] = set()
        self.tables: set[tuple[str, str]] = set()  # with their aliases
        self.functions: set[str] = set()
        self.classes: set[str] = set()
        self.limited = False

    def visit(self, node: Any, own: frozenset[str] = frozenset(), inner: bool = False) -> None:
        """own: parameters of the lambdas around; inner: whether a subquery is around."""
        if isinstance(node, list):
            for each in node:
                self.visit(each, own, inner)
        if not isinstance(node, dict):
            return
        kind = str(node.get("class"))
        self.classes.add(kind)
        self.limited = self.limited or str(node.get("type")).startswith("LIMIT")
        if kind == "LAMBDA":
            parameters = frozenset(_first_names(node["lhs"]))
            # An arrow also takes a value out of JSON, and then no parameter is used after it.
            if node.get("syntax_type") != "SINGLE_ARROW" or parameters & frozenset(_first_names(node["expr"])):
                self.visit(node["expr"], own | parameters, inner)
                return
        if kind == "COLUMN_REF" and node["column_names"][0].lower() not in own:
            (self.inner if inner else self.outer).add(tuple(node["column_names"]))
        if kind == "FUNCTION":
            name, arguments = node["function_name"].lower(), node["arguments"]
            self.functions.add("age until today" if name == "age" and len(arguments) == 1 else name)
            if name == "struct_extract":
                self._take_fields([argument["expression"] for argument in arguments])
        if str(node.get("type")) in _EXTRACTS:
            self._take_fields(node["children"])
        if node.get("type") == "BASE_TABLE":
            self.tables.add((node["table_name"], node["alias"]))
        if isinstance(node.get("sample"), dict):
            self.functions.add("tablesample")
        for key, value in node.items():
            self.visit(value, own, inner or (kind == "SUBQUERY" and key == "subquery"))

    def _take_fields(self, nodes: Sequence[Any]) -> None:
        literals = [node.get("literal") or {} for node in nodes]
        self.fields |= {literal["text"] for literal in literals if literal.get("kind") == "STRING"}


def _first_names(node: Any) -> Iterator[str]:
    """The first name of every path in an expression, lower case: as parameters of lambdas are written."""
    if isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            yield node["column_names"][0].lower()
        for value in node.values():
            yield from _first_names(value)
    if isinstance(node, list):
        for each in node:
            yield from _first_names(each)
