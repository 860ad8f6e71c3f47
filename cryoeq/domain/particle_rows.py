"""Tables with one row per particle."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Rows = TypeVar("Rows", bound="ParticleRows")


class ParticleRows:
    """A dataclass of tensors whose first axis runs over particles.

    Fields that are such tables themselves are treated alike; all other fields are common to all rows.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def rows(self: Rows, rows: Int[Tensor, " rows"]) -> Rows:
        """Some of the particles, in the given order."""
        return self.each(lambda values: values[rows])

    def with_rows(self: Rows, rows: Int[Tensor, " rows"], other: Rows) -> Rows:
        """The table with some rows replaced.

        Args:
            rows: rows of this table, one for each row of the other.
            other: the new rows.
        """
        return self._combined([self, other], lambda pair: pair[0].index_copy(0, rows, pair[1]))

    @classmethod
    def cat(cls: type[Rows], parts: Sequence[Rows]) -> Rows:
        """The rows of several tables, one after the other; at least one table, and that itself where it is alone."""
        return parts[0] if len(parts) == 1 else cls._combined(parts, torch.cat)

    def each(self: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
        """The table after a change of each of its tensors."""
        return self._combined([self], lambda values: change(values[0]))

    def tensors(self) -> Iterator[Tensor]:
        """The columns, those of nested tables included."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, ParticleRows):
                yield from value.tensors()

    def with_tensors(self: Rows, columns: Iterator[Tensor]) -> Rows:
        """The table with other columns, in the order of ``tensors``."""
        return self.each(lambda _: next(columns))

    @classmethod
    def _combined(cls: type[Rows], parts: Sequence[Rows], combine: Callable[[list[Tensor]], Tensor]) -> Rows:
        changes: dict[str, object] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], Tensor):
                changes[field.name] = combine(values)
            elif isinstance(values[0], ParticleRows):
                changes[field.name] = values[0]._combined(values, combine)
        return replace(parts[0], **changes)
