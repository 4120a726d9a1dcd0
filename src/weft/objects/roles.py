"""Rights of a role. Each operation takes one permission, KIND:VERB. A built-in role has those with the rights that are its own; an
own role lists its permissions (``kinds/role.py``). Pure.

A token with a project has its role there and nowhere else. Without one it has the role in every project. A user has the rights
of all role bindings that name the user, or a group that the user is in.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

# read: see objects, and what their guests print. operate: verbs that change no spec but whether something runs, commands and
# consoles in guests, questions to the scheduler. write: create, change and delete. invoke: functions. audit: who did what.
# grant: give others rights in the project, by tokens and role bindings. fabric: nodes, projects, users, and whatever else
# belongs to no project. "": nobody has it.
Right = Literal["", "read", "operate", "write", "invoke", "audit", "grant", "fabric"]

RIGHTS: Final[dict[str, frozenset[str]]] = {
    "viewer": frozenset({"read"}),
    "operator": frozenset({"read", "operate", "invoke"}),
    "editor": frozenset({"read", "operate", "write", "invoke"}),
    "admin": frozenset({"read", "operate", "write", "invoke", "audit", "grant"}),
    "fabric-admin": frozenset({"read", "operate", "write", "invoke", "audit", "grant", "fabric"}),
    "auditor": frozenset({"read", "audit"}),
    "invoker": frozenset({"invoke"}),
}
EVERYWHERE: Final = ("fabric-admin", "auditor")  # roles that no project limits
ALL: Final = "fabric-admin"  # the role with all rights


class Grant(NamedTuple):
    """A role in a project, or in all of them, and the permissions that it gives there. ``peer_project``: of a linked cluster, the
    project there that this one is linked with."""

    role: str
    project: str | None = None
    permissions: frozenset[str] = frozenset()
    peer_project: str = ""

    def gives(self, permission: str, where: str | None) -> bool:
        """Whether it gives ``permission`` in the project ``where`` (None: in no project, or in all of them)."""
        return permission in self.permissions and self.project in (None, where)
