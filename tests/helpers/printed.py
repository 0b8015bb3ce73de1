"""What a command prints, seen at the width of a log file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from rich.console import Console

FRAME = re.compile(r"[\s─━│┃┏┓┗┛┡┩┳┻╇└┘┴┼├┤]+")


def lines(show: Callable[[Console], None], width: int = 80) -> list[str]:
    """The lines that are printed on a console of this width."""
    file = io.StringIO()
    show(Console(file=file, width=width, highlight=False, markup=False))
    return file.getvalue().splitlines()


def unbroken(show: Callable[[Console], None]) -> list[str]:
    """The lines at 80 columns, none longer and none broken: on a wider console they are the same but for the frame."""
    narrow, wide = (["".join(FRAME.split(line)) for line in lines(show, width)] for width in (80, 300))
    assert narrow == wide
    assert all(len(line) <= 80 for line in lines(show)), max(lines(show), key=len)
    return lines(show)
