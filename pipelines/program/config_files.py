"""Where config files are: on disk, or among those that come along, which have short names wherever a program is called."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout, or site-packages


def folder_of(package: str) -> Path:
    """The folder of the configs that come along with a package."""
    return ROOT / package / ("sweeps" if package == "tuning" else "configs")


def shipped(package: str) -> list[Path]:
    """The configs that come along with a package, sorted."""
    return sorted(folder_of(package).rglob("*.yaml"))


def find_config(typed: str | Path, package: str) -> Path:
    """The file that `typed` names: one on disk, else one that comes along; else `typed` itself, which does not exist."""
    path = Path(typed)
    return path if path.exists() else find_shipped(path, package) or path


def find_shipped(typed: str | Path, package: str) -> Path | None:
    """A config that comes along, named as `training/configs/openmoji.yaml`, `openmoji.yaml` or `openmoji`."""
    for place in (ROOT / typed, folder_of(package) / typed):
        for file in (place, place.with_name(f"{place.name}.yaml")):
            if file in shipped(package):
                return file
    return None


def short_name(file: Path) -> str:
    """A file as it is typed: from this folder, or, of a config that comes along, from the root of all packages."""
    file = file.absolute()
    for above in (Path.cwd(), ROOT):
        if file.is_relative_to(above):
            return str(file.relative_to(above))
    return str(file)
