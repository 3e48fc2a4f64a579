"""Names out of archives that others made, fit to be shown."""


def printable(text: str, limit: int = 200) -> str:
    """A name out of an archive, fit to be shown.

    What does not print (surrogates of bytes that are no UTF-8, control characters, marks that turn
    the direction of writing) becomes its escape; of more than ``limit`` characters the middle is
    left out.
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in _cut(text, limit)
    )
    return _cut(shown, limit)


def label(name: str) -> str:
    """A name, fit to be drawn."""
    # fonts know no more than a part of Unicode
    return printable(name.encode("ascii", "backslashreplace").decode(), 24).replace("…", "...")


def _cut(text: str, limit: int) -> str:
    tail = limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 1]}…{text[-tail:]}"
