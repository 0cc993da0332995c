"""Reading the YAML files that people write (configurations, jobs, targets), by path or by the name of an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.inputs.errors import InputError, nearest, one_line


def parse_yaml(text: str, place: str) -> Any:
    """The value that a YAML text states; `place` is where it came from. Raises InputError."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not YAML: {one_line(error)}") from None


def to_yaml(values: Any) -> str:
    """Values as YAML text, keys in the order given."""
    import yaml

    return str(yaml.safe_dump(values, sort_keys=False))


def example_names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder of examples."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_yaml(name: str, examples: Path) -> Path:
    """The file that `name` means: the example of that name, or a path."""
    return examples / f"{name}.yaml" if name in example_names(examples) else Path(name).expanduser()


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
