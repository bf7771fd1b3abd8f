"""A YAML text is refused where aliases make more of it than a config can be: a few lines may stand for gigabytes."""

from __future__ import annotations

import yaml

MOST_VALUES = 100_000


def check_size(node: yaml.Node) -> None:
    """Raises YAMLError where the text has more values than `MOST_VALUES`, each alias written out."""
    sizes: dict[int, int] = {}
    stack: list[tuple[yaml.Node, bool]] = [(node, False)]
    open_nodes: set[int] = set()
    while stack:
        each, is_done = stack.pop()
        inner = _inner(each)
        if is_done:
            open_nodes.discard(id(each))
            sizes[id(each)] = 1 + sum(sizes.get(id(child), 1) for child in inner)  # 1: one that it stands in itself
            if sizes[id(each)] > MOST_VALUES:
                problem = f"expected at most {MOST_VALUES:,} values, found more once aliases are written out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=each.start_mark)
        elif id(each) not in open_nodes and id(each) not in sizes:
            open_nodes.add(id(each))
            stack.append((each, True))
            stack += [(child, False) for child in inner]


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
