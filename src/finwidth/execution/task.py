"""What the engines compute: tasks of any kind, and the two functions that the owner of the tasks gives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

Task = TypeVar("Task", bound="Workload")
Result = TypeVar("Result")
Cancel: TypeAlias = Callable[[], None]  # raises an exception of its own if the result is not wanted any more
Shared: TypeAlias = Mapping[str, Any]  # the parts that a task needs, by name


class Workload(Protocol):
    """A task, as far as the engines need to know it."""

    def work(self) -> float:
        """About how long it takes, in microseconds."""

    def told(self) -> str:
        """What it computes, in a message."""

    def needs(self) -> Iterable[str]:
        """Names of large objects that several tasks share, so that each goes to a cluster once."""


class OnCluster(ABC, Generic[Task, Result]):
    """What the owner of tasks says of their computation on the workers of a cluster."""

    packages: ClassVar[tuple[str, ...]] = ("finwidth", "numpy")  # whose versions must be the same here and there
    change: ClassVar[str]  # what a user may do if a task is too large for any worker

    @staticmethod
    @abstractmethod
    def perform(task: Task, shared: Shared) -> Result:
        """Compute a task, on a worker."""

    def part(self, name: str) -> object:
        """A part that tasks need, to be sent."""
        raise KeyError(name)
