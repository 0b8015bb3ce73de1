"""Where the files that come with skinvl lie: recipes/ and ds_configs/, in a wheel and in the repository alike."""

from __future__ import annotations

import difflib
from pathlib import Path

_FOLDERS = ("recipes", "ds_configs")


def shipped(name: str) -> Path:
    """The path of a shipped file or folder, such as `recipes/bases`; it need not exist.

    Raises:
        ValueError: the name leaves the folders recipes/ and ds_configs/.
    """
    package = Path(__file__).parents[1]
    top = name.split("/", 1)[0]
    root = package if (package / top).is_dir() else package.parent
    path = (root / name).resolve()
    if top not in _FOLDERS or not path.is_relative_to((root / top).resolve()):
        raise ValueError(f"{name!r}: not in the shipped folders {' and '.join(_FOLDERS)}")
    return path


def find(name: str, folder: str, suffix: str = ".yaml") -> Path:
    """The file that a name in a shipped folder, or a path, stands for.

    Raises:
        FileNotFoundError: no such file; the message names the nearest.
    """
    is_path = "/" in name or name.endswith(suffix)
    path = Path(name).expanduser() if is_path else shipped(f"{folder}/{name}{suffix}")
    if path.is_file():
        return path
    known = sorted(file.stem for file in shipped(folder).glob(f"*{suffix}"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
    raise FileNotFoundError(f"{name}: neither a name in {folder}/ nor a path to a {suffix} file; {hint}")
