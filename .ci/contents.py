"""Check that a source distribution and a wheel hold the package, and nothing else."""

import sys
import tarfile
import zipfile
from pathlib import Path

SOURCE = {"PKG-INFO", "LICENSE", "README.md", "MANIFEST.in", "pyproject.toml"}
SOURCE |= {"setup.cfg", "flwr_ctma.egg-info", "flwr_ctma"}  # the first two: setuptools'


def package(names: list[str]) -> set[str]:
    """Files of the package itself."""
    return {name for name in names if name.startswith("flwr_ctma/")}


(folder,) = map(Path, sys.argv[1:])
(wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
in_wheel = zipfile.ZipFile(wheel).namelist()
with tarfile.open(source) as archive:
    files = [member.name for member in archive if member.isfile()]
in_source = [name.partition("/")[2] for name in files]
here = {
    str(path)
    for path in Path("flwr_ctma").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}

for kind, names in (("wheel", in_wheel), ("source distribution", in_source)):
    top = {name.split("/")[0] for name in names}
    print(f"The {kind} holds {len(names)} files in", *sorted(top))
    missing, strange = here - package(names), package(names) - here
    assert not missing and not strange, (missing, strange)
    allowed = {t for t in top if t.endswith(".dist-info")} | {"flwr_ctma"}
    strange = top - (allowed if kind == "wheel" else SOURCE)
    assert not strange, strange
