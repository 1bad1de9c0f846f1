"""The one family of errors.

Owns how an error reads: what is wrong, what was expected, what was found, what to do. Does not decide
exit codes; the command line maps `UsageError` to 2 and everything else of the family to 1.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` in which no character can steer a terminal or fail to be encoded; such become escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


class BarnraiseError(Exception):
    """Base of every error this project raises on purpose.

    `what` is one sentence without a full stop. `expected` and `got` are shown after it, `hint` says
    what to do next.
    """

    def __init__(
        self, what: str, *, expected: object = None, got: object = None, hint: str | None = None
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        """Text that may hold a peer's words and yet can be printed anywhere; evidence has its own lines."""
        text = self.what
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f"{',' if self.expected is not None else ';'} got {self.got}"
        text += "."
        if self.hint:
            text += f" {self.hint}"
        return "\n".join(map(printable, text.split("\n")))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword fields when an error crosses a process boundary."""
        return (_rebuild, (type(self), self.what, self.expected, self.got, self.hint))


def _rebuild(
    kind: type[BarnraiseError], what: str, expected: object, got: object, hint: str | None
) -> BarnraiseError:
    return kind(what, expected=expected, got=got, hint=hint)


class UsageError(BarnraiseError):
    """The person asked for something that cannot be done as asked (exit code 2)."""


class FormatError(BarnraiseError):
    """Bytes are not what their format allows."""


class SignatureError(BarnraiseError):
    """A key or a signature is not acceptable."""


class ProtocolError(BarnraiseError):
    """A record or a transition breaks the rules of a round."""


class StorageError(BarnraiseError):
    """The run folder or a member's own folder could not be written or is inconsistent."""


class WorkError(BarnraiseError):
    """Work that cannot be done as it is asked for, or that gave nothing that can be contributed."""


class NotFiniteError(WorkError):
    """Training gave a loss or an array that is not finite; an auditor states that as what it found."""
