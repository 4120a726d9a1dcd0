"""The Kind record: all that the API server needs to know about a kind. Routes, watch, client, CLI verbs, OpenAPI, columns and the
reference page derive from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from weft.objects.envelope import EMPTY, Condition, Envelope, Part, decode_part
from weft.objects.errors import WeftError
from weft.objects.identity import MAX_NAME, Ref, named_key, new_uid

GUARD = "guard"  # what a node can do that ends guests whose cluster isn't known to be primary any more
Object = Mapping[str, Any]  # a whole object as plain JSON data: kind, name, …, spec, status, report
T = TypeVar("T")


class Stored(Protocol):
    """An object as it is stored: its envelope, and its parts as structs, decoded when they are first read."""

    @property
    def envelope(self) -> Envelope: ...

    @property
    def key(self) -> str: ...

    @property
    def uid(self) -> str: ...

    def spec(self, type_: type[T], /) -> T: ...

    def actions(self, type_: type[T], /) -> T: ...

    def marks(self, type_: type[T], /) -> T: ...

    def status(self, type_: type[T], /) -> T: ...

    def report(self, type_: type[T], /) -> T: ...


class Index(msgspec.Struct, frozen=True, eq=False):
    """A way to find objects by a word, in every informer. Users hold the object itself, so a misspelt index is an import error.
    Each kind that is found by it declares in ``Kind.indexes`` the words of an object, which follow from its uid, key, owner,
    labels, spec and report."""

    name: str  # for people who debug
    reads_status: bool = False  # the words follow from the status too


WordsOf = Callable[[Stored], Iterable[str]]


def uid_of(item: Stored) -> tuple[str, ...]:
    """The words of an index by uid."""
    return (item.uid,)


def uid_of_owner(item: Stored) -> tuple[str, ...]:
    """The words of an index by owner."""
    owner = item.envelope.owner
    return (owner.uid,) if owner is not None else ()


def keys_of(kind: str, item: Stored, names: Iterable[str]) -> list[str]:
    """The keys of the objects of ``kind`` that ``item`` refers to by name."""
    return [named_key(kind, item.envelope.project, name) for name in names]


class Goal(msgspec.Struct, frozen=True):
    """The state that a verb leads to, and what ends the wait for it."""

    reached: Callable[[Object | None], bool]  # of each state of the object; None: it is gone
    words: str  # for people
    ends_failed: bool = True  # by a failure
    ends_refused: bool = True  # if no node fits
    ends_alone: bool = True  # if other members of its gang are missing
    wants_gone: bool = False
    asked: str = ""  # as ``weft wait --for`` takes it; "": what ``weft wait`` waits for by itself
    changes: Callable[[Object], Any] | None = None  # what must differ from what it was before
    answer: Callable[[Object], str] | None = None  # of an object that got there, what people wanted to know
    takes: Callable[[Object], float] | None = None  # of an object: the seconds that the work takes at least
    is_past: Callable[[Object], bool] | None = None  # of an object: whether it won't get there any more
    remark: Callable[[Object], str] | None = None  # of one that got there, what they should know besides; "": nothing


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Work on an object that takes longer than a request, for ``weft operation``. Without one, the operations are what ``create``
    and changes wait for."""

    act: str  # what is done, as a verb: migrate
    cancel: str = ""  # the verb of the object that ends it early; "": deleting the object does
    ended: tuple[str, ...] = ()  # phases in which it is over, reached or not
    subject: str = ""  # the field that names what it is done to; "": the object
    started: str = ""  # the field with its start, in seconds since 1970; "": the object's creation
    while_: str = ""  # the field that is true while there is one; "": always
    condition: str = ""  # the condition that tells how it goes, and since when


class History(msgspec.Struct, frozen=True, kw_only=True):
    """How objects that have ended are kept: for a while, and only so many of one workload."""

    index: Index  # finds those of one workload
    word: Callable[[Stored], str]  # by this
    has_ended: Callable[[Stored], bool]  # and no controller has anything left to do or to say about it
    ended_at: Callable[[Stored], float | None]  # seconds since 1970; None while it goes on


class Column(msgspec.Struct, frozen=True):
    """A table column."""

    title: str
    value: Callable[[Object], str]  # the cell's text
    align: Literal["left", "right"] = "left"
    wide: bool = False  # only with -o wide
    flexible: bool = False  # may be cut when the terminal is narrow
    keep: bool = False  # in a narrow terminal other columns are left out first


class Verb(msgspec.Struct, frozen=True):
    """A verb beyond CRUD: ``POST …/{name}:{verb}``. It changes the object or makes another, or both in one commit."""

    name: str
    summary: str
    input: type[msgspec.Struct] | None = None
    # Pure: the new spec, or the same if nothing needs to change; the object has ``now``, in unix seconds. Raises
    # IllegalTransition where the verb makes no sense now.
    change: Callable[[Object, Any], dict[str, Any]] | None = None
    # Of the same, pure: the fields of its actions that the verb sets, and of those of its marks that name the verb as a writer.
    # Raises as ``change`` does.
    act: Callable[[Object, Any], dict[str, Any]] | None = None
    # Pure: the manifest of another object, which the server creates and answers with; the mark makes its name unique. None: with
    # ``change`` or ``act``, only that happens now. Raises as ``change`` does.
    make: Callable[[Object, Any, str], dict[str, Any] | None] | None = None
    # Of the same: the manifests of further objects, which are created before that one, in the same commit; it may refer to them.
    make_before: Callable[[Object, Any, str], Sequence[dict[str, Any]]] | None = None
    owns: bool = True  # with ``make`` and ``change`` or ``act``: the object owns the new one
    # Of the object and the input: kinds and names of objects in its project that the functions above need to see: under
    # ``others`` of the object, by ``vm/web``, those that exist.
    reads: Callable[[Object, Any], Sequence[tuple[str, str]]] | None = None
    check: Callable[[Any], None] | None = None  # of the input: raises InvalidInput where its fields don't go together
    for_its_cluster: bool = False  # only the linked cluster that made the object may, whatever rights people have
    while_deleted: bool = False  # also of an object that is being deleted, whose end waits for it
    stream: bool = False  # the answer is a ticket for the gateway
    figures: bool = False  # the stream has only what weft counts and measures, nothing that a guest wrote and no secret
    # Of the object and the input: the permissions in its project that it takes beside its own, each with what it is for.
    rights: Callable[[Object, Any], Iterable[tuple[str, str]]] | None = None
    needs: str = ""  # the right of built-in roles that may (objects/roles.py); "": nobody may
    of_all: bool = False  # people who give no name mean all objects of the kind
    says: Callable[[Any], str] | None = None  # of the input, what its event says beside the verb; nothing secret

    @property
    def changes(self) -> bool:
        """Whether it changes the object itself."""
        return self.change is not None or self.act is not None


class Reference(msgspec.Struct, frozen=True):
    """A spec, or marks that an object has from its beginning, name objects of another kind."""

    kind: str
    field: str  # its path, for errors
    names: Callable[..., Sequence[str]]  # of a spec, and of marks where it is ``marked``
    marked: bool = False
    blocks: bool = True  # the other can't be deleted while it is referred to
    reserves: bool = False  # when the other was deleted, no new one may take its name while it is referred to
    # Of the other's status, the object that has it exclusively: nobody else may refer to it anew.
    holder: Callable[[Any], Ref | None] | None = None
    alone: str = ""  # nothing else may own the other, since the owner does to it this; "": that is no matter
    awaited: bool = False  # it need not exist yet
    existing: bool = False  # what is applied together names none of these that it makes: see ``api/object/bulk.py``
    # Of a spec and the specs of those that exist, by name. Raises InvalidInput where they contradict each other.
    agree: Callable[[Any, Mapping[str, Any]], None] | None = None
    agrees_once: bool = False  # ``agree`` is checked at creation only, since the object changes what it names
    # Of a spec, and the name and the marks of one that it names anew. Raises a WeftError for one that isn't to be used any more.
    bars: Callable[[Any, str, Any], None] | None = None
    # Of a spec and the status of those that exist, by name. Raises InvalidInput where they can't give what the spec requests.
    suffices: Callable[[Any, Mapping[str, Any]], None] | None = None
    asks: Callable[[Any], Any] | None = (
        None  # what of a spec ``suffices`` depends on: while that is the same, it isn't checked
    )
    below: Callable[[str, str], str] | None = (
        None  # of own name and name: the full name of an object that belongs to this one
    )
    shared: str | None = None  # the project of those that aren't in its own
    # Of the other's spec, the groups whose users may refer to it anew; none: everyone.
    groups: Callable[[Any], Sequence[str]] | None = None
    # Of the other's spec, the projects whose objects may refer to it anew; None: all.
    projects: Callable[[Any], Sequence[str]] | None = None
    refused: str = (
        ""  # said to others: what the other object doesn't do for {project}; what to do. It may name {name}, too
    )
    # Of a spec, the other's name and spec, and the own project. Raises a WeftError where the other isn't for it.
    fits: Callable[[Any, str, Any, str | None], None] | None = None
    else_: str = ""  # what people may have meant where no object has that name

    def read_names(self, spec: Any, marks: Any) -> Sequence[str]:
        """The names that they have; ``marks`` is None of a kind without."""
        return self.names(spec, marks) if self.marked else self.names(spec)

    def list_names(self, own: str, spec: Any, marks: Any = None) -> list[str]:
        """The names that the object ``own`` refers to."""
        names = list(self.read_names(spec, marks))
        return names if self.below is None else [self.below(own, name) for name in names]


class Claim(msgspec.Struct, frozen=True):
    """An object that belongs to one owner only (a published port), or the owner isn't admitted. The owner's commit creates,
    changes and deletes it."""

    kind: str
    name: str
    spec: msgspec.Struct
    field: str
    reason: str
    taken: str  # the error if another owner has it
    hint: str
    keeps: bool = False  # only made in the owner's commit: its controller deletes it
    forced: bool = False  # whatever outside weft has it
    forcible: bool = False  # its owner's spec can say so


class ClaimWithin(msgspec.Struct, frozen=True):
    """A claim that depends on another object that its owner refers to: an address in a network."""

    kind: str  # of that object
    name: str
    make: Callable[[Envelope], Claim]  # raises InvalidInput


class Counted(msgspec.Struct, frozen=True):
    """Amounts that an object counts in its project's quota."""

    amounts: Mapping[str, float]  # by the quota's fields; what isn't there is 0
    image: str = ""  # its disk is at least as large as this image's


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Needs of a workload from its node beside what is in every WorkloadSpec."""

    images: tuple[str, ...] = ()  # Images of its root disk, and of a CD
    disk: int = 0  # least size of the root disk; 0: the image's
    pool: str = "local"  # of the root disk
    machine: str = ""  # its type; "": it is no machine
    cpu_model: str = ""  # as in a VM's spec
    runtime: str = ""  # what a runtime of the node must be able to run; "": ``machine`` implies it


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """How a kind of workload is placed and run. All functions are pure; those of two take an allocation's spec and a workload's."""

    needs: Callable[[Any], Needs]
    volumes: Callable[[Any], list[str]]  # names of those that it attaches, in order
    volumes_field: str  # where the spec has them
    allocate: Callable[
        [Any, Any], dict[str, Any]
    ]  # of spec and marks: the fields of an allocation that only this kind has
    # Of these fields, by field of the workload's spec: what the allocation has, and what the workload requests.
    compare: Callable[[Any, Any], tuple[dict[str, Any], dict[str, Any]]]
    is_same: Callable[[Any, Any], bool]  # whether ``compare`` would find no difference; quick
    is_alike: Callable[[Any, Any], bool]  # whether both are the same but for size, NICs and images
    resize: Callable[[Any, Any, set[str]], None]  # write these fields into an allocation's new spec
    # The snapshot that its disks come from: with ``snapshot``, a name, and ``memory``; None if they come from its image.
    origin: Callable[[Any], Any] = lambda _: None
    runs_once: Callable[[Any], bool] = lambda _: False  # it never starts again after its end
    preemptible: Callable[[Any], bool] = lambda _: False  # it leaves its capacity to workloads that find none
    checks_health: Callable[[Any], bool] = lambda _: False  # of its spec: the node reports whether it is healthy
    # Of its allocation: why no node can save it as it runs, for another to continue it; "" if one may. None: this kind isn't saved.
    checkpoint_bar: Callable[[Any], str] | None = None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Readers and writers of objects of a kind, and which parts of them."""

    # Who reads it. project: those who may read its project; shared: everyone with a role; fabric: those whose role holds in all
    # projects, since it tells of other people's; guarded: administrators of the fabric; administered: those of the project in
    # its spec, who create and delete it too, and the user who owns it.
    readers: Literal["project", "shared", "fabric", "guarded", "administered"]
    writer: Literal["people", "fabric"] = "people"  # people create, update and delete; or only weft's processes do
    granted: bool = False  # the fabric's administrators write it, though it lies in a project
    removable: bool = False  # people may delete it, though only weft writes it
    # Of old (None: there is none) and new spec: the permissions in no project that the change takes beside that to write, each
    # with what it is for.
    further_rights: Callable[[Any, Any], Iterable[tuple[str, str]]] | None = None
    further_rights_in_project: Callable[[Any, Any], Iterable[tuple[str, str]]] | None = (
        None  # the same, in the object's project
    )
    status_writer: str = ""  # the controller that writes its status
    condition_writers: Mapping[str, str] = {}  # condition type → the one controller that writes it
    # Field of its marks → who writes it: controllers, and verbs as :VERB; nobody: it is made with it. So is one of its actions
    # that controllers set, too; all others are written by its verbs alone.
    mark_writers: Mapping[str, tuple[str, ...]] = {}
    reported_by_node: bool = False  # its ``report`` is a node's
    # What it is named after, which lists may be narrowed by: its uid and a dot.
    name_begins: Literal["", "node", "network"] = ""
    # Which of them a node may read: all, one by name, itself, those of the node or of a network that it is in, in lists those
    # whose ``status.node_uid`` is the node's, or what its gateway for devices serves and needs for that; "": none.
    node_reads: Literal["", "all", "named", "itself", "placed", "connected", "kept", "serving"] = ""
    # Other projects may name it if its spec's ``shared_with`` has them; the fields that they see, like ``status.phase``.
    shared_fields: tuple[str, ...] = ()
    # Fields like ``report.images`` that name other people's objects: only those with rights in all projects see them. Of a
    # condition, like ``conditions.Drained``, others see all but the message.
    fabric_fields: tuple[str, ...] = ()


class Derived(msgspec.Struct, frozen=True):
    """Marks of a new object that the server sets from what other objects have."""

    reads: Callable[[Any, Any], Sequence[tuple[str, str]]]  # of the spec and the marks: kind and name of each object
    put: Callable[[Any, Mapping[str, Any]], None]  # into the marks, from the specs of those that exist, by ``vm/web``


class Signed(msgspec.Struct, frozen=True):
    """The mark in which the server writes who asked for what an object has in other fields."""

    field: str
    of: tuple[str, ...]  # their paths: it is written again whenever one of these changes

    def is_due(self, changed: Iterable[str]) -> bool:
        """``changed``: the paths of what changes."""
        return any(path == of or path.startswith(f"{of}.") for path in changed for of in self.of)


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """Rules by which the API server accepts new objects and changes, and what these count and claim."""

    # Raises InvalidInput for what types can't say; may bring several spellings of one thing into one.
    check: Callable[[Any], None] | None = None
    # Raises it for specs that can't be created any more, though existing ones stay valid.
    check_new: Callable[[Any], None] | None = None
    # Of a new spec and now; raises it for times that have passed.
    check_times: Callable[[Any, float], None] | None = None
    # Of old and new spec; raises it for a change that can't be, and takes from the new one the server's fields that it ends.
    check_change: Callable[[Any, Any], None] | None = None
    # Of old and new spec and its actions: what a change by people leaves of these.
    settle_actions: Callable[[Any, Any, Any], msgspec.Struct] | None = None
    # Of an object, its new spec and now; raises IllegalTransition for a change that its state rules out.
    change_guard: Callable[[Envelope, Any, float], None] | None = None
    # How a field changes that one object can never change, with {} for its name; "": people create another object.
    other_version: str = ""
    # Raises IllegalTransition for an object that people may not change or delete now.
    write_guard: Callable[[Envelope], None] | None = None
    # Of now, too; raises it for one that people may change, but not delete now.
    delete_guard: Callable[[Envelope, float], None] | None = None
    # How far a running object can be resized, by field, from its status; for ``plan_change``.
    resize_limits: Callable[[Any], Mapping[str, int] | None] | None = None
    # Of the spec, which verbs set, too, or which are sealed: a manifest that is silent of one leaves it as it is.
    kept_fields: tuple[str, ...] = ()
    signed: Signed | None = None
    derived: Derived | None = None
    seals: bool = False  # its spec has ``values`` that are stored sealed only
    # Raises InvalidInput, without any value, for new values that won't do: ``check`` sees none, as they are sealed by then.
    check_values: Callable[[Mapping[str, str]], None] = lambda values: None
    # Values that a new object gets by itself, by key, unless it has them; called with the manifest's spec of each.
    makes_values: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda _: {}
    uploads: Callable[[Any], Sequence[str]] | None = None  # digests of what must have been uploaded for a spec
    upload_sort: Literal["code", "onnx"] = "code"  # what these are: zips of functions, or models for devices
    claims: Callable[[Envelope, Any], Sequence[Claim | ClaimWithin]] | None = None
    # Of a spec, what one object of a project may have, and the field that says so. Two that come at one moment may both
    # have it: who acts on it looks again.
    one_of: tuple[Callable[[Any], str], str] | None = None
    # In its project's quota, of spec and status, and of marks where the kind has any; None: nothing. See ``Kind.count``.
    counts: Callable[..., Counted] | None = None
    # How many may belong to one user, beside what logins make; 0: what belongs to users isn't counted so.
    most_of_owner: int = 0
    longest_name: int = MAX_NAME
    reserved_names: tuple[str, ...] = ()  # that none of its objects can have: they mean something already
    only_name: str = ""  # the name that its objects have: there is one in each project, or in the fabric
    # Whether it was refused for good and has nothing: who created it may create another in its place.
    was_refused: Callable[[Envelope], bool] | None = None


class Display(msgspec.Struct, frozen=True, kw_only=True):
    """How help, commands and tables show a kind and its objects."""

    topic: str = ""  # the heading under which help lists it
    aliases: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()  # of ``weft``, for its objects, beside ``Kind.verbs`` and what every kind has
    columns: tuple[Column, ...] = ()
    over: Callable[[Object], bool] | None = None  # whether it has ended: lists leave it out
    progress: Callable[[Object], str] | None = None  # the text beside its phase; None: its reason and message
    shows_output: bool = False  # of a failed one, people see its last output
    # Of a name that no object has, and the option for its project: what would make it.
    find_hint: Callable[[str, str], str | None] = lambda *_: None


class Lifetime(msgspec.Struct, frozen=True, kw_only=True):
    """How an object begins, what is waited for, and when it goes."""

    # Conditions that hold from the start by the spec alone, so that no controller must write them.
    initial_conditions: Callable[[Any], list[Condition]] | None = None
    # What a verb leads to, which commands wait for. ``create`` stands for ``update`` too, and ``wait`` is what ``weft wait``
    # waits for by itself, where that isn't the same.
    goals: Mapping[str, Goal] = {}
    find_failure: Callable[[Object, str, Goal], WeftError | None] | None = None  # None: its phase is Failed
    operation: Operation | None = None
    # Of a kind whose new objects name a place that only a try can check: by the spec, what to do if that fails. The command that
    # created one and waited doesn't keep it then.
    remedy: Callable[[Mapping[str, Any]], str] | None = None
    finalizers: tuple[str, ...] = ()  # hold a new object until their controllers let go
    goes_with_owner: bool = False  # it is removed when its owner is gone
    holds_objects: bool = False  # others lie in it, and keep it from being deleted
    runs_workloads: bool = False  # it has a certificate, its allocations keep it, and a lost one is deleted by force
    ephemeral: bool = False  # a question with an answer: created, read and deleted, never changed
    history: History | None = None


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """All that the API, the CLI and the documentation know of one kind."""

    name: str
    plural: str
    title: str  # as error messages say it: VM, node
    summary: str
    scope: Literal["project", "fabric"] = "project"
    spec: type[msgspec.Struct]
    actions: type[msgspec.Struct] | None = None  # no field of these has the name of one of its marks
    marks: type[msgspec.Struct] | None = None
    status: type[msgspec.Struct]
    report: type[msgspec.Struct] | None = None
    schema: int = 1
    upgrades: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = ()  # whole object of schema n → n+1
    indexes: Mapping[Index, WordsOf] = {}
    references: tuple[Reference, ...] = ()
    verbs: tuple[Verb, ...] = ()
    workload: Workload | None = None  # set: it is placed and run
    template: tuple[str, str] = (
        "",
        "spec",
    )  # the kind of workload that it makes, "" itself, and the field with its spec
    # What a snapshot of it is of: its machine's disks and memory, itself as a volume, or the volumes that it mounts; "": there are
    # none.
    snapshots: Literal["", "machine", "volume", "mounts"] = ""
    # How a backup of its project has it. renamed: it runs or has data, and a restore may give it another name; unended: so, unless
    # it has ended, since it would run again; kept: a restore leaves what is there and the same; named: only its name counts, and no
    # backup has its content; "": not at all.
    in_backups: Literal["", "renamed", "unended", "kept", "named"] = ""
    access: Access
    admission: Admission = Admission()
    display: Display = Display()
    lifetime: Lifetime = Lifetime()

    @property
    def a_title(self) -> str:
        return f"{'an' if self.title[0] in 'aeio' else 'a'} {self.title}"

    @property
    def selectors(self) -> tuple[str, ...]:
        """The query parameters that narrow a list or watch of its objects."""
        return ("labels", "fields", *filter(None, [self.access.name_begins]))

    @property
    def is_shareable(self) -> bool:
        """Whether objects of other projects may name it."""
        return bool(self.access.shared_fields)

    def make(
        self,
        name: str,
        spec: msgspec.Struct,
        now: float,
        *,
        uid: str = "",
        project: str | None = None,
        labels: Mapping[str, str] = {},
        owner: Envelope | Ref | None = None,
        creator: str = "",
        actions: msgspec.Struct | None = None,
        marks: msgspec.Struct | None = None,
        status: msgspec.Struct | None = None,
        report: msgspec.Struct | None = None,
        raw: msgspec.Raw | None = None,
    ) -> Envelope:
        """A new object that nobody has done anything about yet. ``raw`` is its spec, where that is encoded already. Its creator is
        ``creator``, else that of its owner."""
        if isinstance(owner, Envelope):
            creator = creator or owner.creator
            owner = owner.ref
        born = self.lifetime.initial_conditions(spec) if self.lifetime.initial_conditions is not None else ()
        return Envelope(
            kind=self.name,
            name=name,
            uid=uid or new_uid(),
            project=project,
            labels=dict(labels),
            owner=owner,
            schema=self.schema,
            created_at=now,
            created_by=creator or msgspec.UNSET,
            spec=raw or _encode(spec),
            actions=_encode_part(actions, self.actions),
            marks=_encode_part(marks, self.marks),
            status=_encode_first(self.status) if status is None else _encode(status),
            report=EMPTY if report is None else _encode(report),
            finalizers=list(self.lifetime.finalizers),
            conditions=[msgspec.structs.replace(said, since=now, generation=1) for said in born],
        )

    def count(self, spec: Any, status: Any, marks: Any = None) -> Counted:
        """Count an object with these parts in its project's quota; one without ``marks`` has none yet."""
        if self.admission.counts is None:
            return Counted({})
        further = () if self.marks is None else (self.marks() if marks is None else marks,)
        return self.admission.counts(spec, status, *further)

    def read_marks(self, envelope: Envelope) -> Any:
        """The marks of one of its objects; None if it has none."""
        return None if self.marks is None else decode_part(envelope.marks, self.marks)

    def count_envelope(self, spec: Any, envelope: Envelope) -> Counted:
        """Count the object ``envelope`` once it has the spec ``spec``."""
        return self.count(spec, decode_part(envelope.status, self.status), self.read_marks(envelope))

    def verb(self, name: str) -> Verb | None:
        return next((v for v in self.verbs if v.name == name), None)


def _encode(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def _encode_part(part: msgspec.Struct | None, type_: type[msgspec.Struct] | None) -> Part:
    if part is not None:
        return _encode(part)
    return msgspec.UNSET if type_ is None else _encode_first(type_)


@functools.cache
def _encode_first(type_: type[msgspec.Struct]) -> msgspec.Raw:
    return _encode(type_())
