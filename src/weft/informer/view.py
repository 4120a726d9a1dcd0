"""All objects of some kinds at one revision of the store, with indexes: controllers and scheduler read it when they plan.

Holds values and decides nothing. ``informer/cache.py`` puts changes in, from a watch; nobody changes an Item or its envelope
once it is in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from weft.kinds.record import Index, WordsOf
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.envelope import Envelope, Part, decode_envelope, decode_part

T = TypeVar("T")


class Item:
    """One object as read: its envelope, and its parts as structs, decoded at the first use."""

    __slots__ = ("_actions", "_marks", "_report", "_spec", "_status", "envelope", "words")

    def __init__(self, envelope: Envelope, *, spec: object = None, report: object = None) -> None:
        """``spec`` and ``report``: those parts of ``envelope``, if the caller has them decoded."""
        self.envelope = envelope
        self._spec = spec
        self._actions: object = None
        self._marks: object = None
        self._status: object = None
        self._report = report
        self.words: tuple[tuple[str, ...], ...] | None = None  # the words that it has in each index

    def inherit(self, old: Item, *, by_status: bool = False) -> None:
        """Take from ``old``, its former state, the decoded parts that are still the same, and its words if all parts that they
        come from are: with ``by_status`` also the status."""
        mine, its = self.envelope, old.envelope
        if mine.uid != its.uid:
            return
        same_spec, same_report = _is_same(mine.spec, its.spec), _is_same(mine.report, its.report)
        same_actions, same_marks = _is_same(mine.actions, its.actions), _is_same(mine.marks, its.marks)
        if same_spec:
            self._spec = old._spec
        if same_actions:
            self._actions = old._actions
        if same_marks:
            self._marks = old._marks
        if same_report:
            self._report = old._report
        same_status = _is_same(mine.status, its.status)
        if same_status:
            self._status = old._status
        same = same_spec and same_actions and same_marks and same_report and (same_status or not by_status)
        if same and mine.labels == its.labels:
            self.words = old.words

    def forget(self) -> None:
        """Drop the decoded parts, a few times as large as the raw ones: for items that won't be needed soon."""
        self._spec = self._actions = self._marks = self._status = self._report = None

    @property
    def key(self) -> str:
        return self.envelope.key

    @property
    def uid(self) -> str:
        return self.envelope.uid

    @property
    def deleting(self) -> bool:
        return self.envelope.deleting_since is not None

    def spec(self, type_: type[T]) -> T:
        """The spec as ``type_``; shared, so don't change it. Raises msgspec.ValidationError if it is none."""
        if not isinstance(self._spec, type_):
            self._spec = decode_part(self.envelope.spec, type_)
        return self._spec

    def actions(self, type_: type[T]) -> T:
        if not isinstance(self._actions, type_):
            self._actions = decode_part(self.envelope.actions, type_)
        return self._actions

    def marks(self, type_: type[T]) -> T:
        if not isinstance(self._marks, type_):
            self._marks = decode_part(self.envelope.marks, type_)
        return self._marks

    def status(self, type_: type[T]) -> T:
        if not isinstance(self._status, type_):
            self._status = decode_part(self.envelope.status, type_)
        return self._status

    def report(self, type_: type[T]) -> T:
        if not isinstance(self._report, type_):
            self._report = decode_part(self.envelope.report, type_)
        return self._report


class Changed(msgspec.Struct, frozen=True):
    """One object's change: ``old`` None means it is new, ``new`` None that it is gone."""

    key: str
    old: Item | None
    new: Item | None

    @property
    def item(self) -> Item:
        """The newer of the two."""
        item = self.new if self.new is not None else self.old
        assert item is not None, self.key
        return item

    @property
    def kind(self) -> str:
        return self.item.envelope.kind


def has_changed(change: Changed, read: Callable[[Item], object]) -> bool:
    """Whether an object came, went, or ``read`` gives something else of it."""
    return change.old is None or change.new is None or read(change.old) != read(change.new)


class View:
    """The objects of ``kinds``, found by key, by kind, or by a word of one of the ``indexes``; those of the kinds ``later``
    only once there is one of the kind ``once``: see ``widens``."""

    def __init__(
        self, kinds: Iterable[str], indexes: Iterable[Index] = (), *, once: str = "", later: Iterable[str] = ()
    ) -> None:
        self._items: dict[str, Item] = {}
        taken, waiting = dict.fromkeys(kinds), dict.fromkeys(later)
        self._by_kind: dict[str, dict[str, Item]] = {kind: {} for kind in (*taken, *waiting)}
        self._waiting, self._once = waiting.keys() - taken.keys(), once
        self._found: dict[Index, dict[str, dict[str, Item]]] = {index: {} for index in indexes}
        self._indexes: dict[str, list[tuple[WordsOf, dict[str, dict[str, Item]]]]] = {
            kind: [(words_of, found) for index, found in self._found.items() if (words_of := _words_of(kind, index))]
            for kind in self._by_kind
        }
        # The kinds that an index files by status too.
        self._by_status = {
            kind for kind in self._by_kind for index in self._found if index.reads_status and _words_of(kind, index)
        }

    def get(self, key: str) -> Item | None:
        return self._items.get(key)

    def of_kind(self, kind: str) -> Mapping[str, Item]:
        """All objects of a kind by key."""
        return self._by_kind[kind]

    def find(self, index: Index, word: str) -> list[Item]:
        """The objects that ``index`` files under ``word``, in key order."""
        bucket = self._found[index].get(word)
        if not bucket:
            return []
        return [bucket[key] for key in sorted(bucket)] if len(bucket) > 1 else list(bucket.values())

    def count(self, index: Index, word: str) -> int:
        return len(self._found[index].get(word, ()))

    def keys(self) -> Iterable[str]:
        return self._items.keys()

    def takes(self, key: str) -> bool:
        """Whether the view has objects of its kind, by now."""
        kind = _kind_at(key)
        return kind in self._by_kind and kind not in self._waiting

    def widens(self, key: str) -> bool:
        """Whether an object at ``key`` is the first that needs the kinds ``later``. The view has them from now on: the cache reads
        everything again before it puts that object in, so that nobody sees it without the others."""
        if not self._waiting or _kind_at(key) != self._once:
            return False
        self._waiting = set()
        return True

    def put(self, key: str, value: bytes, revision: int) -> Changed | None:
        """Put in the object stored at ``key``; None if the view doesn't have its kind. Raises msgspec.DecodeError."""
        if not self.takes(key):
            return None
        return self.put_item(key, Item(decode_envelope(value, revision)))

    def put_item(self, key: str, item: Item) -> Changed:
        """Put in an object as ``put`` does."""
        kind = item.envelope.kind
        old = self._items.get(key)
        indexes = self._indexes[kind]
        if old is not None:
            item.inherit(old, by_status=kind in self._by_status)
        if item.words is None:  # may raise: before anything changes
            item.words = tuple([tuple(dict.fromkeys(words_of(item))) for words_of, _ in indexes])
        self._items[key] = item
        self._by_kind[kind][key] = item
        before = old.words if old is not None else None
        for (_, found), words in zip(indexes, item.words, strict=True):
            for word in words:
                bucket = found.get(word)
                if bucket is None:
                    found[word] = {key: item}
                else:
                    bucket[key] = item
        if before is not None and before is not item.words:
            for (_, found), words, former in zip(indexes, item.words, before, strict=True):
                for word in former:
                    if word not in words:
                        _drop(found, word, key)
        return Changed(key, old, item)

    def drop(self, key: str) -> Changed | None:
        """Remove an object; None if it isn't in here."""
        old = self._items.pop(key, None)
        if old is None:
            return None
        kind = old.envelope.kind
        del self._by_kind[kind][key]
        for (_, found), words in zip(self._indexes[kind], old.words or (), strict=False):
            for word in words:
                _drop(found, word, key)
        return Changed(key, old, None)


def make_view() -> View:
    """An empty view of every kind, with every index."""
    return View(BY_NAME, dict.fromkeys(index for kind in KINDS for index in kind.indexes))


def _words_of(kind: str, index: Index) -> WordsOf | None:
    known = BY_NAME.get(kind)
    return known.indexes.get(index) if known is not None else None


def _kind_at(key: str) -> str:
    return key[1 : key.find("/", 1)]


def _is_same(one: Part, other: Part) -> bool:
    if isinstance(one, msgspec.UnsetType) or isinstance(other, msgspec.UnsetType):
        return one is other
    return one is other or bytes(one) == bytes(other)


def _drop(found: dict[str, dict[str, Item]], word: str, key: str) -> None:
    bucket = found.get(word)
    if bucket is not None:
        bucket.pop(key, None)
        if not bucket:
            del found[word]
