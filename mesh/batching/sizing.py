"""How many rows one run should take: learned from what runs of different sizes have taken.

A run costs something whatever it holds (a call into the framework, a hand-over to a thread), and something per row.
Joining requests saves the first part, and makes each of them wait for the rows of the others. So a batch may grow as
long as doubling it takes off at least `GAIN_MIN` of the cost of a row, and no further: beyond that nobody gains but
the latency. Where larger batches cost more per row (weights that are read from a mapped file, caches that overflow)
the same rule stops earlier.

Costs are kept by size classes, each twice as large as the one before, since no formula fits all frameworks: kernels
change with the shape, and not always for the better: matrix weights that are read from a mapped file make two rows cost
more than twice one, and eight less than half as much each. So a class that is worse does not end the search before
`LOOK_AHEAD` of them are. A class counts as known after a few runs, of which the first ones may have set things up for
the new shape: of these the shortest counts, later ones move the mean. From time to time what is known of the classes
beyond the best is forgotten, so that a judgement made at a bad moment does not last.

Values in, values out: no clock. Seconds may be those of a thread's processor, where that is what runs cost.
"""

from __future__ import annotations

GAIN_MIN = 0.1
"""Of a row's cost: a doubled batch that saves less is not worth the wait."""
KNOWN_AFTER = 3
"""Runs of a class, before it is judged."""
MEAN_WEIGHT = 0.1
"""Of the newest run in the mean."""
LOOK_AGAIN_AFTER = 512
"""Batches of the best size, before the next larger class is tried again."""
WELL_AGAIN_AFTER = 64
"""Batches that went well, before a limit that a failed one left is doubled."""
LOOK_AHEAD = 3
"""Classes beyond the best, of which none is better, that end the search: eight times its rows."""
CLASSES = 17
"""Up to 65,536 rows."""


def class_of(rows: int) -> int:
    """1 row: 0; 2: 1; 3 and 4: 2; 5 to 8: 3; and so on."""
    return min((rows - 1).bit_length(), CLASSES - 1)


class Sizing:
    """What runs of one model cost, by their number of rows. Owned by one thread."""

    __slots__ = ("_at_best", "_ceiling", "_overhead_s", "_row_s", "_runs", "_well")

    def __init__(self, overhead_s: float = 0.0) -> None:
        """`overhead_s`: what a run costs beside what is measured of it, whatever its size."""
        self._overhead_s = overhead_s
        self._row_s = [0.0] * CLASSES
        self._runs = [0] * CLASSES
        self._at_best = 0
        self._ceiling = 1 << (CLASSES - 1)
        self._well = 0

    def ran(self, rows: int, run_s: float) -> None:
        """A run of so many rows (at least one) took this long."""
        number = class_of(rows)
        row_s, runs = run_s / rows, self._runs[number]
        if runs == 0:
            self._row_s[number] = row_s
        elif runs < KNOWN_AFTER:
            self._row_s[number] = min(row_s, self._row_s[number])
        else:
            self._row_s[number] += MEAN_WEIGHT * (row_s - self._row_s[number])
        self._runs[number] = runs + 1
        if rows > 1:
            self._went_well(number)

    def failed(self, rows: int) -> None:
        """A run of so many rows failed as a whole: smaller ones for a while."""
        self._ceiling = max(1, rows // 2)
        self._well = 0

    def predicted_s(self, rows: int) -> float:
        """What a run of so many rows would take; 0 while nothing is known.

        From its own class, else from the nearest smaller one, as if rows were all that costs; else from the nearest
        larger one, as if they were not.
        """
        number = class_of(rows)
        for smaller in range(number, -1, -1):
            if self._runs[smaller]:
                return self._row_s[smaller] * rows
        for larger in range(number + 1, CLASSES):
            if self._runs[larger]:
                return self._row_s[larger] * (1 << larger)
        return 0.0

    def rows_best(self, own_rows: int = 1, waiting_rows: int = 1 << CLASSES) -> int:
        """The rows that a batch should have at most, which begins with a request of `own_rows` when so many wait in
        all: those of the best class within reach, or of one that is to be tried."""
        best = class_of(own_rows)
        best_s = self._cost_s(best)
        for number in range(best, class_of(max(own_rows, waiting_rows)) + 1):
            if self._runs[number] < KNOWN_AFTER:
                best = number
                break
            cost_s = self._cost_s(number)
            if cost_s <= best_s * (1 - GAIN_MIN) ** (number - best):
                best, best_s = number, cost_s
            elif number - best >= LOOK_AHEAD:
                break
        return min(1 << best, self._ceiling)

    def _cost_s(self, number: int) -> float:
        """Of a row, in a full batch of this class."""
        return self._row_s[number] + self._overhead_s / (1 << number)

    def _went_well(self, number: int) -> None:
        self._well += 1
        if self._well >= WELL_AGAIN_AFTER and self._ceiling < 1 << (CLASSES - 1):
            self._ceiling *= 2
            self._well = 0
        if self._runs[number] < KNOWN_AFTER or self.rows_best(1 << number) != 1 << number:
            return
        self._at_best += 1
        if self._at_best >= LOOK_AGAIN_AFTER:
            self._at_best = 0
            self._runs[number + 1 :] = [0] * (CLASSES - number - 1)
