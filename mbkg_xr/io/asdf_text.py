"""The YAML of an ASDF extension as text: what is asked for is cut out, and nothing else is parsed.

A ``_cal`` of 200 slits has megabytes of YAML, nearly all of it world coordinates. PyYAML and asdf
take seconds to build them; finding a node by its indentation takes microseconds. Only what asdf's
own writer makes is understood (block style, one key a line); for all else there is `Unsplit`, and
the reader falls back to asdf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import yaml

__all__ = ["AsdfText", "Compound", "Node", "Plan", "Unsplit"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ANCHOR = re.compile(rb"(?:^|(?<=[ \[{,]))&([^\s,\[\]{}]+)(?=[ \n])", re.MULTILINE)
_NAME = re.compile(rb"(?:^|(?<=[ \[{,]))([&*])([^\s,\[\]{}]+)", re.MULTILINE)
_PROPERTIES = re.compile(rb"(?:&\S+[ ]*)?(?:!\S*[ ]*)?")
_COMPOUND = re.compile(rb" *(?:&\S+ )?!transform/(compose|concatenate)-\S+\n")
_END = re.compile(rb"\n\.\.\.\r?\n")
# What evaluating a transform forwards and everywhere does not need.
_DROPPED = re.compile(
    rb"^( +)(?:inverse|bounding_box):[^\n]*\n(?:\1(?: |- )[^\n]*\n)*", re.MULTILINE
)
_WORD = re.compile(rb"[A-Za-z]\w*_\w+|detector|world")  # never a YAML word such as "yes"
_NUMBER = re.compile(rb"-?\d+\.\d+")
_MAGIC = b"\xd3BLK"


class Unsplit(ValueError):
    """The text is laid out in a way that cannot be cut by indentation."""


class Node(NamedTuple):
    """Where a value lies in the text, with its anchor and tag."""

    start: int
    end: int


class Compound(NamedTuple):
    """Transforms one after the other, or side by side, each on its own inputs."""

    in_turn: bool
    members: list[Plan]


Plan: TypeAlias = Node | Compound


class AsdfText:
    """The text of an ASDF file and where its binary blocks lie.

    Parameters
    ----------
    raw
        The file's bytes; what follows the last block is ignored.

    Raises
    ------
    Unsplit
        Where no end of the YAML is found.
    """

    def __init__(self, raw: bytes):
        end = _END.search(raw)
        root = re.search(rb"^---[^\n]*\n", raw, re.MULTILINE)
        if end is None or root is None or root.end() > end.start() + 1:
            raise Unsplit("no YAML document")
        self._raw = raw
        self._text = raw[: end.start() + 1]
        self._head = self._text[: root.end()]
        self._blocks_at = end.end()
        self._root = Node(root.end() - 1, len(self._text))

    # --------------------------------------------------------------------------------------------
    # Nodes by indentation

    def child(self, node: Node, key: str) -> Node | None:
        """Value of a key of a mapping in block style, aliases followed."""
        start, column = self._body(node)
        name = key.encode()
        if self._text.startswith(name + b":", start):
            at = start + len(name) + 1
        else:
            line = re.compile(rb"\n {%d}%s:(?=[ \n])" % (column, re.escape(name)))
            found = line.search(self._text, start - 1, node.end)
            if found is None:
                return None
            at = found.end()
        # A sequence may begin at the column of its key.
        after = re.compile(rb"\n(?! {%d}| {%d}- |\n)" % (column + 1, column))
        end = after.search(self._text, at, node.end)
        return self._followed(Node(at, node.end if end is None else end.start() + 1))

    def items(self, node: Node) -> list[Node]:
        """Items of a sequence in block style, aliases followed."""
        start, column = self._body(node)
        # The line before belongs to the search: a pattern that begins with \n is found fast.
        before = self._text.rfind(b"\n", 0, start)
        dash = re.compile(rb"\n {%d}-(?=[ \n])" % column)
        found = list(dash.finditer(self._text, before, node.end))
        if not found:
            raise Unsplit("no sequence")
        starts = [m.end() for m in found]
        ends = [m.start() + 1 for m in found[1:]] + [node.end]
        return [self._followed(Node(s, e)) for s, e in zip(starts, ends, strict=True)]

    def scalar(self, node: Node) -> Any:
        """Value of a scalar."""
        text = self._text[node.start : node.end].strip()
        if _WORD.fullmatch(text):
            return text.decode()
        return float(text) if _NUMBER.fullmatch(text) else yaml.load(text, Loader=_LOADER)

    def _body(self, node: Node) -> tuple[int, int]:
        """Where the content begins, past anchor and tag, and in which column."""
        at = node.start
        while self._text[at : at + 1] == b" ":
            at += 1
        at = _PROPERTIES.match(self._text, at).end()  # type: ignore[union-attr]
        first = self._text[at : at + 1]
        if first in (b"[", b"{", b"*"):
            raise Unsplit("flow style")
        if first != b"\n":
            return at, at - (self._text.rfind(b"\n", 0, at) + 1)
        at += 1
        indented = re.compile(rb" *").match(self._text, at)
        assert indented is not None
        return indented.end(), indented.end() - at

    def _followed(self, node: Node) -> Node:
        """The node itself, or the one that it is an alias of."""
        text = self._text[node.start : node.start + 80].lstrip()
        if not text.startswith(b"*"):
            return node
        return self._anchored(re.match(rb"\*([^\s,\]}]+)", text)[1])  # type: ignore[index]

    @cached_property
    def _anchors(self) -> dict[bytes, int]:
        found = [(m[1], m.start()) for m in _ANCHOR.finditer(self._text)]
        if len(dict(found)) < len(found):
            raise Unsplit("an anchor is defined twice")
        return dict(found)

    def _anchored(self, name: bytes) -> Node:
        """The node that has an anchor."""
        if name not in self._anchors:
            raise Unsplit(f"no anchor {name.decode()}")
        at = self._anchors[name]
        body = _PROPERTIES.match(self._text, at).end()  # type: ignore[union-attr]
        if self._text[body : body + 1] in (b"[", b"{"):
            return Node(at, self._flow_end(body))
        line = self._text.rfind(b"\n", 0, at) + 1
        before = self._text[line:at]
        key = re.fullmatch(rb"( *(?:- )*)[\w.]+: ", before)
        if key:
            column = len(key[1])
            after = rb"\n(?! {%d}| {%d}- |\n)" % (column + 1, column)
        elif re.fullmatch(rb" *(?:- )+", before):
            after = rb"\n(?! {%d}|\n)" % (len(before) - 1)
        else:
            raise Unsplit("an anchor in flow style")
        end = re.compile(after).search(self._text, at)
        return Node(at, len(self._text) if end is None else end.start() + 1)

    def _flow_end(self, at: int) -> int:
        depth = 0
        for token in re.compile(rb"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[\[\]{}]""").finditer(
            self._text, at
        ):
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
            if depth == 0:
                return token.end()
        raise Unsplit("an open bracket")

    # --------------------------------------------------------------------------------------------
    # Slits

    @cached_property
    def slits(self) -> list[Node]:
        """The slits of a multi-slit product, or the whole tree of a single-slit product."""
        listed = self.child(self._root, "slits")
        return [self._root] if listed is None else self.items(listed)

    @property
    def is_multi(self) -> bool:
        """Whether there is a list of slits."""
        return self.slits[0] != self._root

    def scalars(self) -> list[dict[str, Any]]:
        """What each slit says in numbers and words, at its top level."""
        texts = []
        for node in self.slits:
            start, column = self._body(node)
            line = re.compile(
                rb"^(?: {%d}|- )(\w+: (?![!&*\[{|>])[^\n]*\n(?: {%d}[^\n]*\n)*)"
                % (column, column + 1),
                re.MULTILINE,
            )
            begin = self._text.rfind(b"\n", 0, start) + 1
            texts.append([m[1] for m in line.finditer(self._text, begin, node.end)])
        if not self.is_multi:
            return [yaml.load(b"".join(texts[0]), Loader=_LOADER) or {}]
        listed = b"".join(b"- " + (b"  ".join(lines) or b"{}\n") for lines in texts)
        return yaml.load(listed, Loader=_LOADER)

    def wcs_steps(self, slit: Node) -> list[tuple[str, Node]] | None:
        """Frames of a slit's WCS, each with the transform to the next; None where it has none."""
        meta = self.child(slit, "meta")
        wcs = None if meta is None else self.child(meta, "wcs")
        if wcs is None:
            return None
        listed = self.child(wcs, "steps")
        if listed is None:
            raise Unsplit("a WCS without steps")
        return [self._step(step) for step in self.items(listed)]

    def _step(self, step: Node) -> tuple[str, Node]:
        frame, transform = self.child(step, "frame"), self.child(step, "transform")
        if frame is None or transform is None:
            raise Unsplit("a step without frame or transform")
        if b"\n" in self._text[frame.start : frame.end].strip():
            frame = self.child(frame, "name")
        if frame is None:
            raise Unsplit("a frame without name")
        return str(self.scalar(frame)), transform

    def plan(self, transform: Node) -> Plan:
        """A transform as its members: composed ones in turn, concatenated ones side by side.

        Building compound models is what takes astropy longest, as each level maps the parameters of
        all below it; to apply their members is the same.
        """
        found = _COMPOUND.match(self._text, transform.start)
        if not found:
            return transform
        forward = self.child(transform, "forward")
        if forward is None:
            raise Unsplit("a compound transform of nothing")
        return Compound(found[1] == b"compose", [self.plan(one) for one in self.items(forward)])

    # --------------------------------------------------------------------------------------------
    # A small ASDF file of a few nodes

    def excerpt(self, wanted: Sequence[Node]) -> bytes:
        """An ASDF file whose list ``wanted`` holds these nodes, without their inverses."""
        shared: list[bytes] = []
        defined: set[bytes] = set()
        pieces = [self._piece(node, shared, defined) for node in wanted]
        text = b"".join(
            [
                self._head,
                b"shared:\n" if shared else b"",
                *shared,
                b"wanted:\n",
                *pieces,
                b"...\n",
            ]
        )
        return self._with_blocks(text)

    def _piece(self, node: Node, shared: list[bytes], defined: set[bytes]) -> bytes:
        """One item of a list; what it needs of other nodes is put into `shared` before it."""
        text = self._text[node.start : node.end].strip(b" ")
        text = _DROPPED.sub(b"", text if text.endswith(b"\n") else text + b"\n")
        own: set[bytes] = set()
        for kind, name in _NAME.findall(text):
            if kind == b"&":
                own.add(name)
            elif name not in own and name not in defined:
                shared.append(self._piece(self._anchored(name), shared, defined))
        # Nodes within others may have been needed before them: a name is given once.
        text = _ANCHOR.sub(lambda m: b"" if m[1] in defined else m[0], text)
        defined |= own
        return b"- " + text

    def _with_blocks(self, text: bytes) -> bytes:
        """The text, and of the binary blocks those that it names, numbered anew."""
        if re.search(rb"\bsource: -", text):
            raise Unsplit("a streamed block")
        blocks = list(self._blocks())
        used = sorted({int(n) for n in re.findall(rb"\bsource: (\d+)", text)})
        if used and used[-1] >= len(blocks):
            raise Unsplit("a block is missing")
        number = {b"%d" % old: b"%d" % new for new, old in enumerate(used)}
        text = re.sub(rb"(\bsource: )(\d+)", lambda m: m[1] + number[m[2]], text)
        return text + b"".join(self._raw[slice(*blocks[i])] for i in used)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Where each binary block begins and ends."""
        at = self._blocks_at
        while self._raw[at : at + 4] == _MAGIC:
            header = int.from_bytes(self._raw[at + 4 : at + 6], "big")
            if self._raw[at + 9] & 1:
                raise Unsplit("a streamed block")
            end = at + 6 + header + int.from_bytes(self._raw[at + 14 : at + 22], "big")
            yield at, end
            at = end
