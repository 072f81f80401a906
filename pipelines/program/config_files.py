"""Where config files are: on disk, or among those included in the packages, which have short names in any working directory."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout, or site-packages
_PACKAGES = ("pipelines", "training", "evaluation", "tuning")


def folder_of(package: str) -> Path:
    """The folder of a package's included configs."""
    return ROOT / package / ("sweeps" if package == "tuning" else "configs")


def shipped(package: str) -> list[Path]:
    """The configs included in a package, sorted."""
    return sorted(folder_of(package).rglob("*.yaml"))


def find_config(typed: str | Path, package: str) -> Path:
    """The file that `typed` names: one on disk, else an included one; else `typed` itself, which does not exist."""
    path = Path(typed)
    return path if path.exists() else find_shipped(path, package) or path


def find_shipped(typed: str | Path, package: str) -> Path | None:
    """An included config, named as `training/configs/openmoji.yaml`, `openmoji.yaml` or `openmoji`."""
    for place in (ROOT / typed, folder_of(package) / typed):
        for file in (place, place.with_name(f"{place.name}.yaml")):
            if file in shipped(package):
                return file
    return None


def short_name(file: Path) -> str:
    """A file as one would type it: an included config from the root of the packages, any other file from this folder."""
    file = file.absolute()
    included = any(file.is_relative_to(folder_of(package)) for package in _PACKAGES)
    top = ROOT if included else Path.cwd()
    return str(file.relative_to(top) if file.is_relative_to(top) else file)
