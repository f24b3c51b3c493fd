"""(latencies, who is out, now) → who is out."""

from __future__ import annotations

from placement.policy.outliers import LIMITS, Ejection, LatencySample, plan_ejections


def sample(pod: str, ratio: float, calls: int = 100) -> LatencySample:
    return LatencySample(pod, calls, ratio)


def out(ejections: tuple[Ejection, ...], now_s: float) -> list[str]:
    return [ejection.pod for ejection in ejections if ejection.out(now_s)]


def plan(*samples: LatencySample, pods: int = 4, now_s: float = 0.0, current: tuple[Ejection, ...] = ()) -> list[str]:
    return out(plan_ejections(samples, current, pods=pods, now_s=now_s), now_s)


def test_a_pod_that_is_ten_times_slower_goes_out() -> None:
    assert plan(sample("a", 1.0), sample("b", 1.1), sample("c", 10.0), sample("d", 0.9)) == ["c"]


def test_a_pod_that_stalls_now_and_then_stays_in() -> None:
    # 200 ms on 1 % of calls leaves the median where it was.
    assert plan(sample("a", 1.0), sample("b", 1.05), sample("c", 1.2)) == []


def test_few_calls_prove_nothing() -> None:
    assert plan(sample("a", 1.0), sample("b", 1.0), sample("c", 50.0, calls=19)) == []


def test_a_pod_is_slow_only_against_the_others() -> None:
    assert plan(sample("a", 9.0), sample("b", 10.0), sample("c", 11.0)) == []
    assert plan(sample("a", 9.0), sample("b", 10.0), sample("c", 60.0)) == ["c"]


def test_at_most_a_third_is_out_and_the_slowest_go_first() -> None:
    samples = [sample(f"p{number}", 1.0) for number in range(4)] + [
        sample("x", 8.0),
        sample("y", 20.0),
        sample("z", 9.0),
    ]
    assert plan(*samples, pods=7) == ["y", "z"]
    assert plan(sample("a", 1.0), sample("b", 10.0), pods=2) == []
    assert plan(sample("a", 1.0), sample("b", 10.0), sample("c", 1.0), pods=3) == ["b"]


def test_those_who_are_out_take_the_places() -> None:
    current = (Ejection("a", 0.0, 10.0, 9.0),)
    assert plan(sample("b", 1.0), sample("c", 10.0), sample("d", 1.0), now_s=5.0, current=current) == ["a"]


def test_a_pod_comes_back_by_itself_and_stays_out_longer_if_it_is_slow_again() -> None:
    slow = [sample("a", 1.0), sample("b", 1.0), sample("c", 10.0), sample("d", 1.0)]
    current: tuple[Ejection, ...] = ()
    lengths, now_s = [], 0.0
    for _ in range(8):
        current = plan_ejections(slow, current, pods=4, now_s=now_s)
        lengths.append(current[0].until_s - now_s)
        now_s = current[0].until_s
        assert out(current, now_s) == []
    assert lengths == [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]


def test_a_good_probation_cleans_the_record() -> None:
    before = (Ejection("c", 0.0, 40.0, 9.0, times=3),)
    good = [sample(each, 1.0) for each in "abcd"]
    assert plan_ejections(good, before, pods=4, now_s=40.0 + LIMITS.probation_s - 1.0) == before
    assert plan_ejections(good, before, pods=4, now_s=40.0 + LIMITS.probation_s) == ()


def test_the_order_of_samples_changes_nothing() -> None:
    samples = [sample("a", 1.0), sample("b", 1.0), sample("c", 10.0), sample("d", 10.0), sample("e", 1.0)]
    assert plan(*samples) == plan(*reversed(samples)) == ["c"]
