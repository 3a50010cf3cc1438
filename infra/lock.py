"""Write requirements.lock and requirements-dev.lock: every version that this Python's pip would install.

pip itself resolves (``pip install --dry-run --report``), with the user's own pip configuration, so the lock holds
what pip would choose and needs no tool but pip. Run it as ``make lock``; ``make lock LOCK_FLAGS=--upgrade`` moves
every version to the newest that pyproject.toml allows, without it only what must move does.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "requirements.lock"
DEV = ROOT / "requirements-dev.lock"

HEADER = """\
# {what}
# Made by infra/lock.py for CPython {python}, {system}. Do not edit by hand; to renew:
#   make lock                          # keeps every version that pyproject.toml still allows
#   make lock LOCK_FLAGS=--upgrade     # moves every version to the newest that it allows
# then `make test`: a lock that resolves may still not start a server.
# No hashes and no "+cpu": the same torch version has one build per accelerator, and pip's configuration chooses it.
"""


def resolve(requirements: list[str], constraints: list[str]) -> dict[str, str]:
    """Name -> public version of everything that `requirements` bring into an empty environment.

    Raises:
        subprocess.CalledProcessError: pip found no solution; its own message is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        limits, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        limits.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "-c", str(limits), *requirements]
        subprocess.run(command, check=True)
        items = json.loads(report.read_text())["install"]
    found = {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in items}
    return {name: found[name] for name in sorted(found, key=str.lower)}


def pins(path: Path) -> list[str]:
    """The ``name==version`` lines of a lock; none if it does not exist."""
    return re.findall(r"^[\w.-]+==\S+", path.read_text(), re.MULTILINE) if path.exists() else []


def write(path: Path, what: str, versions: dict[str, str], first: str = "") -> None:
    """Write one lock file, lines sorted by name."""
    system = f"{platform.system()} {platform.machine()}"
    header = HEADER.format(what=what, python=f"{sys.version_info.major}.{sys.version_info.minor}", system=system)
    path.write_text(header + first + "".join(f"{name}=={version}\n" for name, version in versions.items()))


def main() -> None:
    """Resolve the run-time dependencies first, then the development tools on top of exactly those."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="forget the versions locked now")
    keep = not parser.parse_args().upgrade
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime_requirements = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    runtime = resolve(runtime_requirements, pins(RUNTIME) if keep else [])
    exact = [f"{name}=={version}" for name, version in runtime.items()]
    everything = resolve([*exact, *project["dependency-groups"]["dev"]], pins(DEV) if keep else [])
    dev = {name: version for name, version in everything.items() if name not in runtime}
    write(RUNTIME, "What autocompress needs to run, and the backend that builds it.", runtime)
    write(DEV, "What the gate needs on top.", dev, first="-r requirements.lock\n")


if __name__ == "__main__":
    main()
