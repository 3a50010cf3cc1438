"""Virtual environments of the arms that bring packages of their own, made when they are first needed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """What is installed.

    Attributes:
        packages: as pip takes them.
        beside: whether everything that this Python has can be imported there too; then packages come without what
            they depend on.
    """

    packages: tuple[str, ...]
    beside: bool


ENVIRONMENTS = {
    "syne-tune": Environment(("syne-tune==0.16.0",), beside=False),
    "torch-pruning": Environment(("torch-pruning==1.6.1",), beside=True),
}


def python_of(name: str, folder: Path) -> Path:
    """The Python of an environment below `folder`; made if it is missing. For ``"own"``, this one.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    if name == "own":
        return Path(sys.executable)
    wanted, root = ENVIRONMENTS[name], (folder / "environments" / name).resolve()
    python, done = root / "bin" / "python", root / "complete"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", root], check=True)
        alone = ["--no-deps"] if wanted.beside else []
        subprocess.run([python, "-m", "pip", "install", "--quiet", *alone, *wanted.packages], check=True)
        if wanted.beside:
            site = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
            # Not only the packages: also those that are installed by a link, as this project in development.
            here = sysconfig.get_path("purelib")
            (site / "core.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        done.touch()
    return python
