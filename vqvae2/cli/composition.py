"""Reading config files, and laying one over another.

Mappings merge deeply, `callbacks+:` appends to a list where `callbacks:` replaces it, and another
`class_path` replaces the class with all its arguments.
"""

import codecs
import copy
import difflib
import functools
from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class UsageError(ValueError):
    """The command line or a config asks for something that does not exist."""


def merge(under: dict, over: dict) -> dict:
    """`over` laid on `under`, neither changed; see the top of this file."""
    classes = [mapping.get("class_path") for mapping in (under, over)]
    if all(classes) and classes[0] != classes[1]:
        under = {}
    merged = dict(under)
    for key in sorted(over, key=_has_plus):  # of `callbacks` and `callbacks+` in one mapping, that begins
        value, plain = over[key], key.removesuffix("+") if _has_plus(key) else key
        name = plain if plain in merged else key
        if _has_plus(key) and (_lists(value) or isinstance(merged.get(name), list)):
            merged[name] = _listed(merged.get(name)) + _listed(value)
            continue
        if _lists(merged.get(f"{key}+")):
            del merged[f"{key}+"]
        if isinstance(value, dict):
            there = merged.get(key)
            value = merge(there if isinstance(there, dict) else {}, value)
        merged[key] = value
    return merged


def lost(content: dict, composed: dict) -> dict:
    """What was once laid in a config and is no longer there, because another class has replaced it."""
    classes = [mapping.get("class_path") for mapping in (content, composed)]
    if all(classes) and classes[0] != classes[1]:
        return {}  # these are options of the class that was replaced
    found: dict = {}
    for key, value in content.items():
        name = key if key in composed else str(key).removesuffix("+")
        if name not in composed:
            found[key] = value
        elif isinstance(value, dict) and isinstance(composed[name], dict):
            part = lost(value, composed[name])
            found |= {key: part} if part else {}
    return found


def _has_plus(key: object) -> bool:
    return isinstance(key, str) and key.endswith("+")


def _lists(value: Any) -> bool:
    """Whether it can be what `key+` appends; of others, such as a path, the + belongs to a name."""
    return isinstance(value, list) or (isinstance(value, dict) and "class_path" in value)


def _listed(value: Any) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def read_config(path: Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        UsageError: there is no such file, or it is not a YAML mapping, or gives a key twice.
    """
    text = _text(path)
    try:
        content = copy.deepcopy(_parsed(text))
    except UsageError as error:
        raise UsageError(f"{path}, {error}") from None
    except yaml.MarkedYAMLError as error:
        mend = " Indent with spaces." if "\\t" in str(error.problem) else ""
        line = error.problem_mark.line + 1
        raise UsageError(f"{path}, line {line}: not YAML: {error.problem}.{mend}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{path}, line {line}: not YAML: character {error.character:#x}.") from error
    except ValueError as error:  # of a value, such as the date 2020-13-01
        raise UsageError(f"{path}: not YAML: {error}.") from error
    if content is None:
        raise UsageError(f"{path}: is empty, wanted a mapping such as 'trainer: …'.")
    if not isinstance(content, dict):
        raise UsageError(f"{path}: wanted a mapping such as 'trainer: …', found {type(content).__name__}.")
    dotted = dotted_keys(content)
    for key, names in dotted.items():
        if sets(content, names) or list(dotted.values()).count(names) > 1:
            raise UsageError(
                f"{path}: '{key}' is given twice, once with dots and once as a mapping. Keep one."
            )
    return content


@functools.lru_cache(maxsize=256)  # a command reads each of its files many times
def _parsed(text: str) -> Any:
    root = check_keys(text)
    return None if root is None else yaml.SafeLoader("").construct_document(root)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config.{did_you_mean(path)}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a config: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise UsageError(f"{path}, line {line}: not UTF-8 (byte {byte:#x}). Save it as UTF-8.") from error


def dotted_keys(config: dict) -> dict[str, list[str]]:
    """The keys such as `trainer.max_steps`, which the parser takes after all nested ones; as their names."""
    return {
        key: [name for name in key.split(".") if name != "init_args"]
        for key in config
        if isinstance(key, str) and "." in key
    }


def check_keys(text: str) -> yaml.Node | None:
    """A YAML's nodes, of which every mapping has each key once; of two, readers keep the last without a word.

    Keys are the same if they are written the same or mean the same: `1` and `"1"`, `yes` and `true`.

    Raises:
        UsageError: two are the same; names their lines.
        yaml.YAMLError: it is not YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    keys = yaml.SafeLoader("")  # gives their meaning
    seen: set[int] = set()

    def check(node: yaml.Node | None, above: tuple[int, ...]) -> None:
        if id(node) in above:
            raise UsageError(f"line {node.start_mark.line + 1}: holds itself.")
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            return
        seen.add(id(node))
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                check(part, (*above, id(node)))
        if isinstance(node, yaml.MappingNode):
            _check_mapping(node, keys)
            _merge_within(node)

    check(root, ())
    return root


def _check_mapping(node: yaml.MappingNode, keys: yaml.SafeLoader) -> None:
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # the reader refuses it
        line = key.start_mark.line + 1
        meaning = key.value if key.tag == _MERGE else keys.construct_object(key)
        if (first := lines.get(meaning, lines.get(key.value))) is not None:
            mend = "Merge several as <<: [*a, *b]." if key.tag == _MERGE else "Keep one."
            raise UsageError(f"line {line}: '{key.value}' is given twice, first in line {first}. {mend}")
        lines |= {meaning: line, key.value: line}


def _merge_within(node: yaml.MappingNode) -> None:
    """What `<<` brings, in place: of several, the first that has a key, but the mapping's own before all.

    PyYAML 6.0.4 takes the last instead, and of keys of one letter another one (yaml.org/type/merge.html).
    """
    brought = [value for key, value in node.value if key.tag == _MERGE]
    sources = brought[0].value if brought and isinstance(brought[0], yaml.SequenceNode) else brought
    if not all(isinstance(source, yaml.MappingNode) for source in sources):
        return  # which the reader refuses
    pairs = [pair for pair in node.value if pair[0].tag != _MERGE]
    for source in sources:
        known = {str(key.value) for key, _ in pairs}
        pairs += [pair for pair in source.value if str(pair[0].value) not in known]
    node.value = pairs


def did_you_mean(path: Path) -> str:
    neighbours = [str(other) for other in path.parent.glob("*.yaml")]
    close = difflib.get_close_matches(str(path), neighbours, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def sets(node: object, key: list[str]) -> bool:
    for name in key:
        if isinstance(node, dict) and name not in node:
            node = node.get("init_args", node)
        if not isinstance(node, dict):
            return isinstance(node, list)  # such as trainer.callbacks: what is inside has no name
        if name not in node and f"{name}+" not in node:
            return False
        node = node.get(name, node.get(f"{name}+"))
    return bool(key)
