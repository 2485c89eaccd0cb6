"""The rooms and the direction of imports, read from the source with ast."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("featurestore", "pipelines", "training")
LONGEST_FUNCTION = 50

# featurestore from the bottom to the top: a module imports only from lines above its own.
LAYERS = [
    {"errors", "hashing", "occupancy"},
    {"paths"},
    {"cache", "section", "signs"},
    {"plans", "spec"},
    {"encode", "splits", "layouts"},
    {"digest"},
    {"manifest"},
    {"shards"},
    {"snapshot"},
    {"staging", "vocabulary"},
    {"database"},
    {"compare", "retention", "store"},
    {"collisions", "reslot"},
    {"drift", "whereabouts"},
    {"output", "__init__"},
    {"options", "wording"},
    {"cli"},
    {
        "cache_command",
        "collisions_command",
        "query_command",
        "reslot_command",
        "run_command",
        "snapshots_command",
    },
]


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    lazy: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING:`

    @property
    def top(self):
        return self.imported.split(".")[0]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def sources():
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in files}


def imports_of(module, node, known, lazy=False, typing=False):
    """Yield every import below ``node``; `from a import b` is of a.b where that is a module."""
    if isinstance(node, ast.Import):
        yield from (Import(module, alias.name, lazy, typing) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} has a relative import"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield Import(module, full if full in known else node.module, lazy, typing)
    else:
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from imports_of(module, child, known, lazy, typing)


@functools.cache
def imports():
    modules = sources()
    return [found for module, tree in modules.items() for found in imports_of(module, tree, modules)]


def said(some_imports):
    return sorted(f"{found.importer} imports {found.imported}" for found in some_imports)


def inside(module, package):
    return module == package or module.startswith(f"{package}.")


def test_the_packages_are_there():
    for package in PACKAGES:
        assert package in sources()
    assert len(sources()) > 20
    assert {"duckdb", "apache_beam"} <= {found.top for found in imports()}


def test_there_is_no_import_cycle():
    edges = {}
    for found in imports():
        if found.imported in sources() and not found.typing:
            edges.setdefault(found.importer, set()).add(found.imported)
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(edges.get(module, ())):
                visit(other)
            done.add(path.pop())

    for module in sources():
        visit(module)


def test_a_cycle_would_be_found():
    """The walk sees imports inside functions too: a lazy cycle is a cycle."""
    tree = ast.parse("def f():\n    from featurestore import spec\n    import featurestore.store as s")
    found = list(imports_of("x", tree, {"featurestore.spec"}))
    assert [one.imported for one in found] == ["featurestore.spec", "featurestore.store"]
    assert all(one.lazy for one in found)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("featurestore", ("pipelines", "training", "apache_beam", "torch", "mlflow", "matplotlib", "pandas")),
        ("pipelines", ("training", "torch", "mlflow", "pandas", "polars")),
        ("training", ("pipelines", "apache_beam", "polars")),
    ],
)
def test_packages_keep_to_their_rooms(package, forbidden):
    wrong = [found for found in imports() if inside(found.importer, package) and found.top in forbidden]
    assert said(wrong) == []


def test_only_database_imports_duckdb():
    assert {found.importer for found in imports() if found.top == "duckdb"} == {"featurestore.database"}


def test_only_tracking_and_figures_import_mlflow_and_matplotlib_and_only_when_used():
    users = [found for found in imports() if found.top in ("mlflow", "matplotlib")]
    allowed = {
        "training.tracking",
        "training.comparison.tracking",
        "training.comparison.figures",
        "training.report.tracking",
    }
    assert {found.importer for found in users} <= allowed
    assert said(found for found in users if not (found.lazy or found.typing)) == []


def test_what_draws_a_page_is_imported_by_the_page_alone():
    """A GPU machine has none of it, and the rest of training runs there."""
    pages = {
        "altair": "training.report.charts",
        "jinja2": "training.report.page",
        "vl_convert": "training.report.page",
    }
    for package, module in pages.items():
        assert {found.importer for found in imports() if found.top == package} == {module}
    users = {found.importer for found in imports() if inside(found.imported, "training.report")}
    assert all(inside(user, "training.report") for user in users)


def test_the_real_mlflow_is_not_hidden():
    assert not (ROOT / "mlflow" / "__init__.py").exists()


def test_featurestore_is_layered():
    height = {f"featurestore.{name}": level for level, names in enumerate(LAYERS) for name in names}
    height["featurestore"] = height.pop("featurestore.__init__")
    modules = {module for module in sources() if inside(module, "featurestore")}
    assert modules <= set(height), "a new module needs its place in LAYERS"
    wrong = [
        found
        for found in imports()
        if found.importer in modules
        and found.imported in modules
        and height[found.imported] >= height[found.importer]
    ]
    assert said(wrong) == []


def functions():
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module}.{node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_long():
    assert [name for name, lines in functions() if lines >= LONGEST_FUNCTION] == []


def test_no_exception_is_thrown_away():
    """An except clause handles its error or raises another; `pass` alone does neither."""
    silent = [
        f"{module}:{node.lineno}"
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and all(isinstance(step, ast.Pass) for step in node.body)
    ]
    assert silent == []
