"""The installed version of the package."""

from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("mlxrpc")
    except metadata.PackageNotFoundError:  # a source tree on the path, never installed
        return "0.0.0+source"


__version__ = _installed()
