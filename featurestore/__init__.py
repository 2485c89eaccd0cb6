"""What most users need; everything else is in the modules. Names are imported when they are used.

``encode`` is not among them, for it has the name of its module: ``from featurestore.encode import encode``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.errors import ArtifactError, NotFound, QueryError, SlotstoreError, SpecError
    from featurestore.hashing import slot, xxh32
    from featurestore.spec import FeatureSpec, load_spec
    from featurestore.store import FeatureStore

__all__ = [
    "ArtifactError",
    "FeatureSpec",
    "FeatureStore",
    "NotFound",
    "QueryError",
    "SlotstoreError",
    "SpecError",
    "load_spec",
    "slot",
    "xxh32",
]

_MODULES = {
    "errors": ("ArtifactError", "NotFound", "QueryError", "SlotstoreError", "SpecError"),
    "hashing": ("slot", "xxh32"),
    "spec": ("FeatureSpec", "load_spec"),
    "store": ("FeatureStore",),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as many types as names
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"featurestore.{module}"), name)
    raise AttributeError(f"module 'featurestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
