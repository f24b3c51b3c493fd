from cache.types import ModelKey
from mesh.tally import SIZES_MAX, Tallies

KEY = ModelKey("default", "scale", 1)


def test_copies_of_one_generation_share_a_tally_until_it_is_forgotten() -> None:
    tallies = Tallies()
    tally = tallies.of(KEY)
    assert tallies.of(KEY) is tally
    assert tallies.of_tenant("default") == {KEY: tally}
    assert tallies.of_tenant("another") == {}
    tallies.forget(KEY)
    assert tallies.of(KEY) is not tally


def test_a_shared_run_counts_once_as_a_run_and_for_each_request_in_its_time() -> None:
    tally = Tallies().of(KEY)
    tally.ran(queued_s=0.2, run_s=0.5, requests=2, inferences=6)
    tally.answered(0.7, ended_s=10.0, waited_s=0.0)
    tally.answered(0.8, ended_s=11.0, waited_s=0.1)
    assert (tally.executions, tally.inferences, tally.runs) == (1, 6, 2)
    assert (tally.run_s, tally.requests_s) == (0.5, 1.0)
    assert tally.queued_s == 0.2 + 0.1
    assert tally.of_size == {6: [1, 0.5]}
    assert (tally.successes, tally.successes_s, tally.ended_s) == (2, 1.5, 11.0)


def test_sizes_beyond_the_limit_are_counted_in_the_totals_alone() -> None:
    tally = Tallies().of(KEY)
    for rows in range(1, SIZES_MAX + 10):
        tally.ran(0.0, 0.001, 1, rows)
    assert len(tally.of_size) == SIZES_MAX
    assert tally.executions == SIZES_MAX + 9
