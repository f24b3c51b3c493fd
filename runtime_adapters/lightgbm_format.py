"""What is inside a LightGBM model file, and a text that is safe to hand to LightGBM.

LightGBM's text reader trusts its input: it searches for `=` past the end of the buffer, jumps by the `tree_sizes` that
the file claims, ends the process on a word where a number should be, and predict follows every child, feature and
category index unchecked. Of 800 damaged copies of a good model, 528 killed the process (lightgbm 4.7), so no byte of
an artifact reaches LightGBM unread. The file is read here, checked, and a new text is written
from what was read, with only what prediction and its explanation need: split gains and weights, feature ranges,
importances and training parameters stay behind, which also cuts the time LightGBM takes to read it.

Numbers are copied digit by digit once they are known to be some, so predictions are the file's own.

What is checked in each tree: every list has the length that `num_leaves` and `num_cat` call for; an inner child has a
greater number than its parent, so that every walk ends, and no second parent, or forty nodes would be 2^40 ways for an
explanation to walk; leaves, features and category sets exist.

Memory, measured with lightgbm 4.7 as private dirty pages after a trim: 23.7 MB for 300 trees of 1,200 leaves,
282 kB for 100 of 31, 59 kB for 30 of 15; the constants below are within 3 % of each. The statistics that are left out
save no memory, LightGBM keeps their room zeroed. It has no binary form; a copy takes 0.65 times its text file.

Deliberately absent: names of features and pandas categories. Tensors carry columns by position and categories as codes.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from runtime_adapters.base import Array
from runtime_adapters.errors import BadArtifact

LEAF_BYTES = 65
"""Leaf value, weight, count and parent; a node's threshold, children, feature, gain, value, weight, count, decision."""
TREE_BYTES = 720
FEATURE_BYTES = 96
BOOSTER_BYTES = 5 << 10
CATEGORY_WORD_BYTES = 4
LINEAR_TERM_BYTES = 24

FEATURES_MAX = 1 << 22
LEAVES_MAX = 1 << 24
_TREE_LINES_MAX = 22
"""As many lines of a tree as LightGBM reads."""

_INTEGERS = re.compile(rb"[-0-9 ]*")
_DECIMALS = re.compile(rb"[-+0-9.eE ]*")
# As LightGBM writes them, one blank between two: nearly always, and a fifth of the time that reading floats takes. No
# number that fits is infinite, or too large for 64 bits.
_PLAIN_INTEGERS = re.compile(rb"-?[0-9]{1,18}+(?: -?[0-9]{1,18}+)*+")
_PLAIN_DECIMAL = rb"-?[0-9]{1,32}+(?:\.[0-9]{1,32}+)?+(?:e(?:-[0-9]{2,3}+|\+[0-9]{2}+))?+"
_PLAIN_DECIMALS = re.compile(_PLAIN_DECIMAL + rb"(?: " + _PLAIN_DECIMAL + rb")*+")
_BLANK = ord(" ")
_OBJECTIVE = re.compile(r"[a-z0-9_]+(?: [a-z_0-9]+(?::[-+0-9.eE]+)?)*")
_WHAT_NEXT = "save the model again with Booster.save_model"
_CATEGORICAL = 1


@dataclass(frozen=True, slots=True)
class LightgbmFacts:
    """What serving needs to know of a checked model."""

    objective: str
    """The objective's name without its parameters; empty for a custom one."""
    features: int
    groups: int
    """Values per row before any label is made of them."""
    trees: int
    leaves: int
    category_words: int
    linear_terms: int
    counted: bool = False
    """Each node says how many training rows it saw, which exact contributions need; leaves hold no linear models."""
    handed_over_as_is: bool = False
    """The file is the very text that would be written from it: `prepare` made it."""

    @property
    def resident_bytes(self) -> int:
        return (
            BOOSTER_BYTES
            + FEATURE_BYTES * self.features
            + TREE_BYTES * self.trees
            + LEAF_BYTES * self.leaves
            + CATEGORY_WORD_BYTES * self.category_words
            + LINEAR_TERM_BYTES * self.linear_terms
        )


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model that passed, and the text that LightGBM may read."""

    facts: LightgbmFacts
    text: bytes


@dataclass(frozen=True, slots=True)
class _Header:
    features: int
    groups: int
    trees: int
    """As many as it promises."""
    objective: str
    averages: bool
    text: bytes


@dataclass(slots=True)
class _Tree:
    leaves: int
    category_words: int
    linear_terms: int
    counted: bool
    text: bytes


def looks_like_lightgbm(head: bytes) -> bool:
    lines = head.replace(b"\r\n", b"\n").split(b"\n", 2)
    return len(lines) >= 2 and lines[0] == b"tree" and lines[1].startswith(b"version=v")


def read_model(data: bytes) -> CheckedModel:
    """Read and check a model file. Raises BadArtifact."""
    reader = ModelReader()
    reader.take(data)
    return reader.finish()


class ModelReader:
    """Reads and checks a model file from its beginning to its end, in whatever pieces it comes. What is kept of a tree
    is its new text. Not for several threads at a time."""

    def __init__(self) -> None:
        self._rest = bytearray()
        """Of what came, what is not a whole section yet."""
        self._searched = 0
        """So much of it has no mark in it."""
        self._half_line_end = False
        self._had_line_ends_of_two = False
        self._header: _Header | None = None
        self._trees: list[_Tree] = []
        self._ended = False
        self._as_is = True

    def take(self, data: bytes) -> None:
        """The next piece. Raises BadArtifact; then the model is none, whatever else comes."""
        if self._half_line_end:
            data = b"\r" + data
        self._half_line_end = data.endswith(b"\r")
        if self._half_line_end:
            data = data[:-1]
        if b"\r" in data:
            self._had_line_ends_of_two = True
            data = data.replace(b"\r\n", b"\n")
        self._rest += data
        if not self._ended:
            self._take_sections()

    def finish(self) -> CheckedModel:
        """The whole model, once all of it was taken. Raises BadArtifact."""
        if self._half_line_end:
            self._rest += b"\r"
            self._half_line_end = False
        if self._header is None and not self._rest:
            raise BadArtifact("lightgbm: the artifact is empty; upload the model file again")
        if self._header is None:
            _check_beginning(bytes(self._rest[:_BEGINNING_BYTES]))
        if not self._ended or not _is_whole(bytes(self._rest)):
            _refuse("the file is cut off after its trees, or among them; upload it again")
        assert self._header is not None
        with _missing_lines():
            checked = _check(self._header, self._trees)
        as_is = self._as_is and not self._rest and not self._had_line_ends_of_two
        as_is = as_is and checked.text.startswith(self._header.text + (_TREE_MARK if self._trees else _END_MARK))
        return replace(checked, facts=replace(checked.facts, handed_over_as_is=as_is))

    def _take_sections(self) -> None:
        """Of what has come, all that a mark follows."""
        begin = 0
        while not self._ended:
            mark, at = _first_mark(self._rest, max(begin, self._searched))
            if at < 0:
                self._searched = max(begin, len(self._rest) - _MARK_BYTES_MAX + 1)
                break
            with memoryview(self._rest) as view:
                section = view[begin:at].tobytes()
            with _missing_lines():
                self._take_section(section)
            begin = self._searched = at + len(mark)
            self._ended = mark == _END_MARK
        del self._rest[:begin]
        self._searched = max(0, self._searched - begin)

    def _take_section(self, section: bytes) -> None:
        if self._header is None:
            _check_beginning(section[:_BEGINNING_BYTES])
            self._header = _read_header(section)
            return
        number = len(self._trees)
        tree = _check_tree(number, section, self._header.features)
        self._trees.append(tree)
        self._as_is = self._as_is and tree.text == b"Tree=%s\n" % section


_TREE_MARK, _END_MARK = b"\nTree=", b"\nend of trees\n"
_MARK_BYTES_MAX = max(len(_TREE_MARK), len(_END_MARK))
_BEGINNING_BYTES = 256


def _first_mark(text: bytearray, begin: int) -> tuple[bytes, int]:
    """The mark that comes first from there on, and where; -1: there is none."""
    tree = text.find(_TREE_MARK, begin)
    end = text.find(_END_MARK, begin, len(text) if tree < 0 else tree)
    return (_TREE_MARK, tree) if end < 0 else (_END_MARK, end)


def _check_beginning(beginning: bytes) -> None:
    if not looks_like_lightgbm(beginning):
        raise BadArtifact(f"lightgbm: not a LightGBM text model, it begins with {beginning[:8]!r}; {_WHAT_NEXT}")


@contextmanager
def _missing_lines() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise BadArtifact(f"lightgbm: the line {error.args[0]} is missing; {_WHAT_NEXT}") from error


def _is_whole(tail: bytes) -> bool:
    """Does what follows the trees end as LightGBM ends a file? None of it is used, but half an upload is no model."""
    if not tail.strip():
        return True
    _, end, categories = tail.partition(b"\nend of parameters\n")
    if not end or not tail.endswith(b"\n"):
        return False
    name, _, value = categories.strip().partition(b":")
    if not name:
        return True
    try:
        json.loads(value)
    except ValueError:
        return False
    return name == b"pandas_categorical"


def _read_header(text: bytes) -> _Header:
    lines = _lines(text, "the header")
    features = _integer(lines, "max_feature_idx") + 1
    groups = _integer(lines, "num_tree_per_iteration")
    if not 1 <= features <= FEATURES_MAX:
        _refuse(f"max_feature_idx is {features - 1:,}; allowed are 0 to {FEATURES_MAX - 1:,}")
    if not 1 <= groups <= FEATURES_MAX or _integer(lines, "num_class") != groups:
        _refuse(f"num_class is not num_tree_per_iteration ({groups:,})")
    claimed = len(lines["tree_sizes"].split())
    return _Header(features, groups, claimed, _objective(lines, groups), "average_output" in lines, text)


def _check(header: _Header, trees: list[_Tree]) -> CheckedModel:
    features, groups, objective = header.features, header.groups, header.objective
    if len(trees) % groups:
        _refuse(f"{len(trees):,} trees cannot be divided among {groups:,} outputs")
    if header.trees != len(trees):
        _refuse(f"the header promises {header.trees:,} trees, the file has {len(trees):,}")
    lines = [
        b"tree",
        b"version=v4",
        b"num_class=%d" % groups,
        b"num_tree_per_iteration=%d" % groups,
        b"label_index=0",
        b"max_feature_idx=%d" % (features - 1),
        *([b"objective=" + objective.encode()] if objective else []),
        *([b"average_output"] if header.averages else []),
        # Names and ranges are of no use to prediction, but LightGBM wants one per feature.
        b"feature_names=" + b" ".join(b"f%d" % number for number in range(features)),
        b"feature_infos=" + b" ".join([b"none"] * features),
        b"tree_sizes=" + b" ".join(b"%d" % len(tree.text) for tree in trees),
        b"\n",
    ]
    text = b"".join((b"\n".join(lines), *(tree.text for tree in trees), b"end of trees\n"))
    facts = LightgbmFacts(
        objective=objective.partition(" ")[0],
        features=features,
        groups=groups,
        trees=len(trees),
        leaves=sum(tree.leaves for tree in trees),
        category_words=sum(tree.category_words for tree in trees),
        linear_terms=sum(tree.linear_terms for tree in trees),
        counted=all(tree.counted for tree in trees),
    )
    return CheckedModel(facts, text)


def _objective(header: dict[str, bytes], groups: int) -> str:
    """The objective's line; empty when the model was trained with a function of its own."""
    objective = header.get("objective", b"").decode("ascii", "replace").strip()
    if objective and not _OBJECTIVE.fullmatch(objective):
        _refuse(f"the objective {objective[:60]!r} is not a name with numbers")
    name, *settings = objective.split(" ")
    # A softmax over more classes than there are outputs would write past the end of the answer.
    classes = [int(setting[10:]) for setting in settings if re.fullmatch(r"num_class:[0-9]+", setting)]
    if name.startswith("multiclass"):
        if classes != [groups]:
            _refuse(f"the objective {objective!r} does not have {groups:,} classes")
    elif classes or (objective and groups != 1):
        _refuse(f"the objective {objective!r} does not answer {groups:,} values per row")
    return objective


def _check_tree(number: int, text: bytes, features: int) -> _Tree:
    found_number, _, rest = text.partition(b"\n")
    if found_number.strip() != b"%d" % number:
        _refuse(f"tree {number:,} is numbered {found_number[:20]!r}")
    lines = _lines(rest, f"tree {number:,}", lines_max=_TREE_LINES_MAX)

    def refuse(why: str) -> NoReturn:
        _refuse(f"tree {number:,}: {why}")

    leaves, categories = _integer(lines, "num_leaves"), _integer(lines, "num_cat")
    if not 1 <= leaves <= LEAVES_MAX or not 0 <= categories < leaves:
        refuse(f"num_leaves is {leaves:,} and num_cat {categories:,}")
    linear = "is_linear" in lines and _integer(lines, "is_linear") != 0
    kept = [
        b"num_leaves=%d" % leaves,
        b"num_cat=%d" % categories,
        b"leaf_value=" + _float_text(lines, "leaf_value", leaves, refuse),
    ]
    category_words = linear_terms = 0
    counted = not linear
    if leaves > 1:
        nodes, category_words = _check_nodes(lines, leaves, categories, features, refuse)
        kept += nodes
        if counted and (counts := _row_counts(lines, leaves, refuse)):
            kept += counts
        else:
            counted = False
    kept.append(b"is_linear=%d" % linear)
    if linear:
        terms, linear_terms = _check_linear(lines, leaves, features, refuse)
        kept += terms
    if "shrinkage" in lines:
        kept.append(b"shrinkage=" + _float_text(lines, "shrinkage", 1, refuse))
    return _Tree(leaves, category_words, linear_terms, counted, b"\n".join((b"Tree=%d" % number, *kept, b"\n")))


def _check_nodes(
    lines: dict[str, bytes], leaves: int, categories: int, features: int, refuse: Callable[[str], NoReturn]
) -> tuple[list[bytes], int]:
    """(the lines of the inner nodes, words of category sets)."""
    nodes = leaves - 1
    kept: list[bytes] = []
    has_parent, inner_children = np.zeros(nodes, np.bool_), 0
    for side in ("left_child", "right_child"):
        children, text = _integers(lines, side, nodes, refuse)
        inner = (children > np.arange(nodes)) & (children < nodes)
        leaf = (children < 0) & (children >= -leaves)
        if not (inner | leaf).all():
            node = int(np.argmin(inner | leaf))
            refuse(f"{side} of node {node:,} is {children[node]:,}")
        below = children[inner]
        has_parent[below] = True
        inner_children += len(below)
        if np.count_nonzero(has_parent) != inner_children:
            refuse(f"a {side} is the child of another node, too")
        kept.append(b"%s=%s" % (side.encode(), text))
    split_features, text = _integers(lines, "split_feature", nodes, refuse)
    if _beyond(split_features, features):
        refuse(f"a split_feature is beyond {features:,} features")
    kept.append(b"split_feature=" + text)
    threshold = _float_text(lines, "threshold", nodes, refuse)
    kept.append(b"threshold=" + threshold)
    decisions, text = _integers(lines, "decision_type", nodes, refuse)
    if _beyond(decisions, 128):
        refuse("a decision_type is beyond 0 to 127")
    kept.append(b"decision_type=" + text)
    categorical = np.flatnonzero(decisions & _CATEGORICAL)
    if len(categorical):
        thresholds = threshold.split()
        for node in categorical.tolist():
            chosen = thresholds[node]
            if not (chosen.isdigit() and int(chosen) < categories):
                refuse(f"a split uses category set {chosen[:20]!r} of {categories:,}")
    if not categories:
        return kept, 0
    boundaries, boundaries_text = _integers(lines, "cat_boundaries", categories + 1, refuse)
    if boundaries[0] != 0 or bool((np.diff(boundaries) <= 0).any()):
        refuse("cat_boundaries do not rise from 0")
    words, words_text = _integers(lines, "cat_threshold", int(boundaries[-1]), refuse)
    if _beyond(words, 1 << 32):
        refuse("a cat_threshold is beyond 32 bits")
    kept += [b"cat_boundaries=" + boundaries_text, b"cat_threshold=" + words_text]
    return kept, len(words)


def _row_counts(lines: dict[str, bytes], leaves: int, refuse: Callable[[str], NoReturn]) -> list[bytes]:
    """The lines that say how many training rows each node saw; none where that is not said of all."""
    kept = []
    for name, count in (("leaf_count", leaves), ("internal_count", leaves - 1)):
        if name not in lines:
            return []
        rows, text = _integers(lines, name, count, refuse)
        if bool((rows < 1).any()) or bool((rows >= 1 << 31).any()):
            return []
        kept.append(b"%s=%s" % (name.encode(), text))
    return kept


def depth_of(text: bytes) -> int:
    """Nodes on the longest way to a leaf, over all trees of a text that was written here."""
    deepest = 1
    sides = {}
    for line in text.split(b"\n"):
        name, _, numbers = line.partition(b"=")
        if name not in (b"left_child", b"right_child"):
            continue
        sides[name] = np.fromstring(numbers.decode(), np.int64, sep=" ")
        if name == b"left_child":
            continue
        left, right = sides[b"left_child"], sides[b"right_child"]
        level, depth = np.zeros(1, np.int64), 1
        while level.size:
            below = np.concatenate((left[level], right[level]))
            level, depth = below[below >= 0], depth + 1
        deepest = max(deepest, depth)
    return deepest


def _check_linear(
    lines: dict[str, bytes], leaves: int, features: int, refuse: Callable[[str], NoReturn]
) -> tuple[list[bytes], int]:
    """(the lines of the linear models in the leaves, their number of terms)."""
    counts, counts_text = _integers(lines, "num_features", leaves, refuse)
    if _beyond(counts, features + 1):
        refuse(f"a leaf's linear model has a number of terms beyond 0 to {features:,}")
    terms = int(counts.sum())
    used, used_text = _integers(lines, "leaf_features", terms, refuse)
    if _beyond(used, features):
        refuse(f"a leaf_features index is beyond {features:,} features")
    kept = [
        b"leaf_const=" + _float_text(lines, "leaf_const", leaves, refuse),
        b"num_features=" + counts_text,
        b"leaf_features=" + used_text,
        b"leaf_coeff=" + _float_text(lines, "leaf_coeff", terms, refuse),
    ]
    return kept, terms


def _lines(text: bytes, where: str, lines_max: int = 64) -> dict[str, bytes]:
    """`key=value` lines; a line without `=` is a key of its own (`average_output`)."""
    found: dict[str, bytes] = {}
    for line in text.split(b"\n"):
        if not line.strip():
            continue
        key_text, _, value = line.partition(b"=")
        key = key_text.decode("ascii", "replace")
        if key in found or len(found) == lines_max:
            _refuse(f"{where} has the line {key[:40]!r} twice, or more than {lines_max} lines")
        found[key] = value
    return found


def _integer(lines: dict[str, bytes], name: str) -> int:
    try:
        return int(lines[name])
    except ValueError:
        _refuse(f"{name} is {lines[name][:40]!r}, not an integer")


def _integers(lines: dict[str, bytes], name: str, count: int, refuse: Callable[[str], NoReturn]) -> tuple[Array, bytes]:
    """The numbers, and as they are written: LightGBM reads the same digits in the same way."""
    text = lines[name]
    if _PLAIN_INTEGERS.fullmatch(text):
        found = np.fromstring(text.decode(), np.int64, sep=" ")
        if len(found) == count:
            return found, text
    return _numbers(lines, name, count, np.dtype(np.int64), refuse)


def _float_text(lines: dict[str, bytes], name: str, count: int, refuse: Callable[[str], NoReturn]) -> bytes:
    """The numbers as they are written, separated by one blank each. LightGBM aborts on what is no finite number."""
    text = lines[name]
    if _PLAIN_DECIMALS.fullmatch(text) and np.count_nonzero(np.frombuffer(text, np.uint8) == _BLANK) + 1 == count:
        return text
    found, text = _numbers(lines, name, count, np.dtype(np.float64), refuse)
    if not np.isfinite(found).all():
        refuse(f"{name} holds a number that is not finite")
    return text


def _numbers(
    lines: dict[str, bytes], name: str, count: int, dtype: np.dtype[Any], refuse: Callable[[str], NoReturn]
) -> tuple[Array, bytes]:
    text = lines[name]
    kind, letters = ("integers", _INTEGERS) if dtype.kind == "i" else ("decimal numbers", _DECIMALS)
    if not letters.fullmatch(text):
        refuse(f"{name} holds something else than {kind}")
    if b"  " in text or text[:1] == b" " or text[-1:] == b" ":  # LightGBM writes one blank between two
        text = b" ".join(text.split())
    written = text.count(b" ") + 1 if text else 0
    with warnings.catch_warnings():
        # Older NumPy warns where it stops early ("1-" is of the right letters only); the count then tells.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = np.fromstring(text.decode(), dtype, sep=" ") if written else np.zeros(0, dtype)
        except ValueError:
            refuse(f"{name} holds something else than {kind}")
    if len(found) != count or written != count:
        refuse(f"{name} has {written:,} items, {count:,} are due")
    return found, text


def _beyond(numbers: Array, limit: int) -> bool:
    """Is one of them outside 0 <= number < limit?"""
    return bool(numbers.size) and bool(numbers.min() < 0 or numbers.max() >= limit)


def _refuse(why: str) -> NoReturn:
    raise BadArtifact(f"lightgbm: {why}; {_WHAT_NEXT}")
