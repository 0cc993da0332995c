"""Reading the YAML files that people write (configurations, jobs, targets), by path or by the name of an example."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from model.inputs.errors import InputError, nearest, one_line
from model.inputs.paths import as_path

# Plain scalars of the core schema of YAML 1.2 (section 10.3.2), with the characters that each can begin with. By those
# of YAML 1.1, which PyYAML follows, 12:00 would be 720, 010 eight, `no` false, and 5e-4 a text.
_SCALARS = (
    ("null", r"|~|null|Null|NULL", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
)

# Aliases can put a value within itself, and a few lines can stand for billions of values.
_DEEPEST, _MOST_VALUES = 50, 1_000_000


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a text in YAML 1.2 states; `origin` is where it came from.

    Raises InputError for a text of another form, for a key that is given twice, and for values within themselves.
    """
    import yaml

    try:
        value = yaml.load(text, _loader())  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{origin}: not YAML: {one_line(error)}") from None
    waiting, count = [(value, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise InputError(
                f"{origin}: not YAML: a value within itself, or more than {_MOST_VALUES:,} values, or {_DEEPEST} levels"
            )
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple | set) else ()
        waiting += [(part, depth + 1) for part in inner]
    return value


def to_yaml(values: Any) -> str:
    """Values as YAML text, keys in the order given, which readers of YAML 1.1 and 1.2 read alike."""
    import yaml

    return str(yaml.dump(values, Dumper=_dumper(), sort_keys=False))


@cache
def _loader() -> Any:
    """PyYAML's safe loader, which is imported on first use, with the scalars of YAML 1.2."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            keys: set[tuple[str, str]] = set()
            for key_node, _ in node.value:
                if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                    key = (key_node.tag, key_node.value)
                    if key in keys:
                        problem = f"key {key_node.value!r} is given twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                    keys.add(key)
            return node

    def construct_int(loader: Any, node: Any) -> int:
        text = str(loader.construct_scalar(node))
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)

    _add_scalars(Loader)
    Loader.add_constructor("tag:yaml.org,2002:int", construct_int)
    return Loader


@cache
def _dumper() -> Any:
    """PyYAML's safe dumper, which also quotes texts that YAML 1.2 would take for something else."""
    import yaml

    class Dumper(yaml.SafeDumper):
        yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    _add_scalars(Dumper)
    return Dumper


def _add_scalars(to: Any) -> None:
    for name, pattern, first in _SCALARS:
        to.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), first)


def example_names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder of examples."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_yaml(name: str, examples: Path) -> Path:
    """The file that `name` means: the example of that name, or a path."""
    return examples / f"{name}.yaml" if name in example_names(examples) else as_path("file", name)


def read_yaml(name: str, examples: Path, kind: str) -> dict[str, Any]:
    """Keys and values of the YAML file that `name` means.

    kind: what such a file is, for messages ("job"). Raises InputError for a file that is not there, cannot be read or
    holds something else.
    """
    try:
        text = find_yaml(name, examples).read_text()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        names = example_names(examples)
        offered = f"those that come with the project are {', '.join(names)}"
        raise InputError(f"{name}: no such {kind} file{nearest(name, names)}; {offered}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not YAML: {one_line(error)}") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); correct its permissions") from None
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise InputError(f"{name}: a {kind} is `key: value` lines")
    return values
