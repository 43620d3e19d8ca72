"""Making room: which artifacts of a lab nobody will ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from coralline.errors import UserError
from hardware_lab.artifacts import Stored

if TYPE_CHECKING:
    from hardware_lab.store import Store

LEAST_S = 2 * 24 * 3600.0
"""A store may take a day to note that what it has was put again."""


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be.

    Attributes:
        artifacts: Those.
        unfinished: Uploads that were cut off and not gone on with; not looked for in a dry run.
    """

    artifacts: tuple[Stored, ...]
    unfinished: int

    @property
    def size_bytes(self) -> int:
        """Of the artifacts together."""
        return sum(artifact.size_bytes for artifact in self.artifacts)

    def to_json(self) -> dict[str, Any]:
        """The fields and `size_bytes`."""
        return {**asdict(self), "size_bytes": self.size_bytes}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Pruned:
        """Read what `to_json` wrote."""
        return Pruned(tuple(Stored(**one) for one in data["artifacts"]), data["unfinished"])


def prune(store: Store, older_than_s: float, *, dry_run: bool = False) -> Pruned:
    """As `Store.prune`."""
    if older_than_s < LEAST_S:
        raise UserError(f"only what is older than {LEAST_S / 86400:g} days can be pruned")
    since = store.now() - older_than_s
    old = [artifact for artifact in store.artifacts.stored() if artifact.put_at < since]
    # After the list: a job that was submitted meanwhile keeps what it needs.
    in_use = store.artifacts_in_use(since)
    found = [artifact for artifact in old if artifact.ref not in in_use]
    if dry_run:
        return Pruned(tuple(found), 0)
    deleted = [artifact for artifact in found if store.artifacts.delete(artifact.ref, since)]
    return Pruned(tuple(deleted), store.artifacts.clean(since))
