"""Mutants: a module's source with one verification step taken out.

Owns what counts as a step and how it is disabled. Does not run anything. The steps are: a `raise`, a call
made only for the error it may raise, a report of something wrong, one operand of a conjunction or disjunction
that decides something, and a `return False`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

# Calls that stand alone, or in a condition, because of what they refuse.
CHECKING = (
    "check",
    "verify",
    "require",
    "expect",
    "refuse",
    "equal",
    "add",
    "digest_hex",
    "parse",
    "counts",
    "digests",
)
# Of these `add` is a check only on a report of findings.
REPORTS = ("report",)


@dataclass(frozen=True)
class Mutant:
    """One step taken out of `module`, lines `line` to `last`. `source` is the whole mutated module."""

    module: str
    line: int
    last: int
    what: str
    source: str

    @property
    def name(self) -> str:
        """For people: where, and what was disabled."""
        return f"{self.module}:{self.line} {self.what}"


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    count = sum(1 for _ in _steps(tree))
    for number in range(count):
        changed = copy.deepcopy(tree)
        parent, field, index, what, node = list(_steps(changed))[number]
        line, last = node.lineno, node.end_lineno or node.lineno
        _disable(parent, field, index)
        yield Mutant(module, line, last, what, ast.unparse(ast.fix_missing_locations(changed)))


Step = tuple[ast.AST, str, int | None, str, ast.stmt | ast.expr]


def _steps(tree: ast.AST) -> Iterator[Step]:
    """(parent, field, index in a list, words, the step itself) of each step."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            skip = node.name.startswith("__") and node.name != "__post_init__"
            if not skip:
                yield from _in_function(node)


def _in_function(function: ast.FunctionDef) -> Iterator[Step]:
    for parent in ast.walk(function):
        if parent is not function and isinstance(parent, ast.FunctionDef | ast.ClassDef):
            continue
        for field, value in ast.iter_fields(parent):
            if isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.stmt):
                        yield from _statement(parent, field, index, item)
            elif isinstance(value, ast.expr):
                yield from _expression(parent, field, value)
    # An annotation or a default is no step: `iter_fields` of the function gives only statements and these.


def _statement(parent: ast.AST, field: str, index: int, item: ast.stmt) -> Iterator[Step]:
    if isinstance(item, ast.Raise) and item.exc is not None and not isinstance(parent, ast.ExceptHandler):
        yield parent, field, index, _words(item.exc), item
    elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Call) and _is_check(item.value):
        yield parent, field, index, _words(item.value), item
    elif isinstance(item, ast.Return) and isinstance(item.value, ast.Constant) and item.value.value is False:
        yield parent, field, index, "return False", item


def _expression(parent: ast.AST, field: str, value: ast.expr) -> Iterator[Step]:
    deciding = isinstance(parent, ast.If | ast.Return | ast.IfExp | ast.UnaryOp | ast.comprehension)
    if isinstance(value, ast.BoolOp) and deciding:
        for index in range(len(value.values)):
            kind = "and" if isinstance(value.op, ast.And) else "or"
            yield value, "values", index, f"{kind}: {_words(value.values[index])}", value.values[index]
    if isinstance(value, ast.Call) and isinstance(parent, ast.If) and _is_check(value):
        yield parent, field, None, f"if {_words(value)}", value


def _is_check(call: ast.Call) -> bool:
    name, owner = "", ""
    if isinstance(call.func, ast.Attribute):
        name = call.func.attr
        inner = call.func.value
        owner = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
    elif isinstance(call.func, ast.Name):
        name = call.func.id
    if name == "add":
        return owner in REPORTS
    return any(name.lstrip("_").startswith(word) for word in CHECKING)


def _disable(parent: ast.AST, field: str, index: int | None) -> None:
    value = getattr(parent, field)
    if isinstance(parent, ast.BoolOp) and index is not None:
        if len(parent.values) > 1:
            # Take the operand out: with `and` it no longer restricts, with `or` it no longer refuses.
            parent.values[index] = ast.Constant(isinstance(parent.op, ast.And))
    elif index is None:
        setattr(parent, field, ast.Constant(value=True))
    elif isinstance(value[index], ast.Return):
        value[index] = ast.Return(ast.Constant(value=True))
    else:
        value[index] = ast.Pass()


def _words(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:90]
