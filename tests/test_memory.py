"""A loop's memory is returned when holes in the heap make it grow, and only then."""

from __future__ import annotations

import pytest

from kdfw import memory


@pytest.fixture()
def returned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append(1))
    return calls


def checked(monkeypatch: pytest.MonkeyPatch, sizes: list[float]) -> list[bool]:
    """What `Upkeep.check` answers for a process of these sizes."""
    left = iter(sizes)
    monkeypatch.setattr(memory, "resident_memory", lambda: next(left))
    upkeep = memory.Upkeep()
    return [upkeep.check() for _ in sizes]


def test_growth_beyond_what_was_settled_is_returned(monkeypatch: pytest.MonkeyPatch, returned: list[int]) -> None:
    grown = [float(size) for size in range(10, 24)]  # settles at 17; 23 is the first above 1.35 times that
    assert checked(monkeypatch, grown) == [False] * 13 + [True]
    assert len(returned) == 1


def test_sizes_that_differ_while_it_settles_are_no_growth(monkeypatch: pytest.MonkeyPatch, returned: list[int]) -> None:
    assert not any(checked(monkeypatch, [10.0, 30.0, *[31.0] * 40]))
    assert not returned


def test_it_settles_anew_after_memory_was_returned(monkeypatch: pytest.MonkeyPatch, returned: list[int]) -> None:
    sizes = [10.0] * 8 + [14.0] + [20.0] * 8 + [26.0, 28.0]
    assert checked(monkeypatch, sizes) == [False] * 8 + [True] + [False] * 8 + [False, True]


def test_new_holes_do_not_count_as_needed(monkeypatch: pytest.MonkeyPatch, returned: list[int]) -> None:
    """Sizes that grow by one after each return, from 11: never above 1.35 times what was needed at first."""
    size, shown = [10.0], []

    def resident() -> float:
        size[0] = 11.0 if returned and len(returned) != len(shown) else size[0] + 0.2
        shown[:] = returned
        return size[0]

    monkeypatch.setattr(memory, "resident_memory", resident)
    upkeep = memory.Upkeep()
    sizes = [(upkeep.check(), size[0])[1] for _ in range(400)]
    assert len(returned) > 10
    assert max(sizes) < 1.35 * 11.7 + 0.2


def test_where_the_system_says_nothing_nothing_is_done(monkeypatch: pytest.MonkeyPatch, returned: list[int]) -> None:
    assert not any(checked(monkeypatch, [0.0] * 30))


@pytest.mark.skipif(memory._libc() is None, reason="not glibc")
def test_holes_go_back_to_the_kernel() -> None:
    import numpy as np

    kept, freed = [], []
    for _ in range(400):  # blocks below the size that glibc maps one by one
        freed.append(np.ones(12_000, dtype=np.float64))
        kept.append(np.ones(500, dtype=np.float64))
    full = memory.resident_memory()
    freed.clear()
    memory.return_freed_memory()
    assert full - memory.resident_memory() > 20e6
    assert len(kept) == 400
