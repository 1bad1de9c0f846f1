"""Putting a mutant's code into functions that were imported already.

Owns finding the functions that a mutant changes and replacing their code, in this process. Does not own
what a mutant is (mutants.py) or who judges it (mutations.py). Importing everything anew for every mutant
would take most of a mutation run's time.
"""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from types import CodeType, FunctionType


def swap(path: str, original: str, mutated: str) -> bool:
    """Give every live function of the file `path` its code in `mutated`; whether that was possible.

    `original` is the file's source. False when a changed function is not live, has its name twice, or uses
    other variables of its surroundings: then a process of its own has to import the mutant.
    """
    before = _codes(compile(ast.unparse(ast.parse(original)), path, "exec"))
    after = _codes(compile(mutated, path, "exec"))
    if before is None or after is None or before.keys() != after.keys():
        return False
    changed = {name for name in before if _bare(before[name]) != _bare(after[name])}
    inner = {name for name in changed if not any(other.startswith(f"{name}.<locals>.") for other in changed)}
    live = [
        found
        for found in gc.get_objects()
        if type(found) is FunctionType
        and found.__code__.co_filename == path
        and found.__code__.co_qualname in changed
    ]
    around = {name.partition(".<locals>.")[0] for name in inner}
    if not inner or not around <= {function.__code__.co_qualname for function in live}:
        return False
    try:
        for function in live:
            function.__code__ = after[function.__code__.co_qualname]
    except ValueError:
        return False
    return True


def _codes(module: CodeType) -> dict[str, CodeType] | None:
    """The functions of a module by qualified name; None when a name stands twice."""
    found = list(_functions(module))
    named = {code.co_qualname: code for code in found}
    return named if len(named) == len(found) else None


def _functions(outer: CodeType) -> Iterator[CodeType]:
    for inner in outer.co_consts:
        if isinstance(inner, CodeType):
            # A comprehension or a lambda goes with the function that it stands in, a class is its functions.
            if not inner.co_name.startswith("<") and inner.co_flags & 0x1:  # CO_OPTIMIZED: a function
                yield inner
            yield from _functions(inner)


def _bare(code: CodeType) -> CodeType:
    """Code without its line numbers, for comparing."""
    constants = tuple(_bare(item) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_firstlineno=1, co_linetable=b"", co_consts=constants)
