"""What `hexcomb plan` reads, and what it says of what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.access_log import COLUMNS
from mesh.planning.log_lines import UnreadableLog
from mesh.planning.request_log import RequestLog, read_request_log, read_sizes
from mesh.simulation.workloads.trace import RecordedLoad, RecordedRun

HEADER = ",".join(COLUMNS) + "\n"


def read(tmp_path: Path, *texts: str, sizes: str = "") -> RequestLog:
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"log-{number}.csv")
        paths[-1].write_text(text)
    if not sizes:
        return read_request_log(paths)
    (tmp_path / "sizes.csv").write_text(sizes)
    return read_request_log(paths, read_sizes(tmp_path / "sizes.csv"))


def test_an_access_log_is_a_trace_that_begins_at_zero(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        HEADER + "1000.5,default,iris,miss,31.2,2000,0.03\n1001.0,default,iris,hit,0.4,,\n"
        "1002.5,default,wine,miss,12.0,1000,0.01\n",
    )
    assert log.trace.times_s == (0.0, 0.5, 2.0)
    assert [log.trace.models[position].name for position in log.trace.asked] == ["iris", "iris", "wine"]
    assert [model.size_bytes for model in log.trace.models] == [2000, 1000]
    assert log.remarks == ()
    assert log.observed is not None
    assert log.observed.cold_fraction == pytest.approx(2 / 3)
    assert log.observed.cold_p99_ms == 31.2


def test_loads_are_replayed_as_they_were_without_the_first_which_fetched(tmp_path: Path) -> None:
    lines = [(0, 0.9), (1, 0.9), (10, 0.02), (20, 0.04)]  # the second waited for the first one's load
    log = read(tmp_path, HEADER + "".join(f"{at},default,iris,miss,1,2000,{load_s}\n" for at, load_s in lines))
    model = log.trace.models[0]
    assert model.first is None
    assert model.loads == (RecordedLoad(10.0, 0.0, 0.02), RecordedLoad(20.0, 0.0, 0.04))
    assert model.load_s == pytest.approx(0.03)


def test_where_the_log_says_what_fetches_took_the_first_load_is_replayed_with_its_own(tmp_path: Path) -> None:
    lines = [(0, 0.9, 0.85), (1, 0.9, 0.85), (10, 0.022, 0.002), (20, 0.04, 0.0)]
    log = read(
        tmp_path,
        HEADER + "".join(f"{at},default,iris,miss,950,2000,{load_s},{fetch_s},940\n" for at, load_s, fetch_s in lines),
    )
    model = log.trace.models[0]
    assert model.first == RecordedLoad(0.0, 0.85, pytest.approx(0.05))
    assert model.loads == (RecordedLoad(10.0, 0.002, pytest.approx(0.02)), RecordedLoad(20.0, 0.0, 0.04))
    assert model.runs == tuple(RecordedRun(at, pytest.approx(0.01)) for at in (0.0, 1.0, 10.0, 20.0))
    assert log.remarks == ()


def test_runs_of_hits_are_known_from_any_access_log_and_of_misses_where_it_says_how_long_they_waited(
    tmp_path: Path,
) -> None:
    log = read(tmp_path, HEADER + "1,default,a,miss,900,100,0.8\n2,default,a,hit,4,,\n")
    assert log.trace.models[0].runs == (RecordedRun(1.0, 0.004),)


def test_of_a_model_that_was_loaded_once_a_later_load_would_be_the_same_without_its_fetch(tmp_path: Path) -> None:
    log = read(tmp_path, HEADER + "1,default,a,miss,1,100,0.8,0.75,1\n2,default,a,hit,1,,,,\n")
    model = log.trace.models[0]
    assert model.first == RecordedLoad(0.0, 0.75, pytest.approx(0.05))
    assert model.loads == (RecordedLoad(0.0, 0.0, pytest.approx(0.05)),)
    assert log.remarks == ()


def test_a_model_that_was_loaded_once_is_taken_to_load_from_disk_as_others_do(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        HEADER + "1,default,a,miss,1,100,0.8\n2,default,a,miss,1,100,0.2\n3,default,b,miss,1,100,0.4\n",
    )
    assert [load.load_s for load in log.trace.models[1].loads] == pytest.approx([0.1])
    assert "1 of 2 models were loaded once" in log.remarks[0]
    assert "25% of that is taken" in log.remarks[0]


def test_lines_out_of_order_are_sorted_and_it_is_said(tmp_path: Path) -> None:
    log = read(tmp_path, "time_s,model,size_bytes,load_s\n5,a,10,0.1\n3.5,b,10,0.1\n6,a,,\n")
    assert log.trace.times_s == (0.0, 1.5, 2.5)
    assert "1 of 3 lines stood out of the order of time, by up to 1.500 s" in log.remarks[0]


def test_logs_of_several_pods_are_one_trace(tmp_path: Path) -> None:
    one = HEADER + "10,default,a,miss,1,10,0.1\n30,default,a,hit,1,,\n"
    other = HEADER + "20,default,b,miss,1,20,0.2\n5,default,b,hit,1,,\n"
    log = read(tmp_path, one, other)
    assert log.trace.times_s == (0.0, 5.0, 15.0, 25.0)
    assert [log.trace.models[position].name for position in log.trace.asked] == ["b", "a", "b", "a"]


def test_models_that_were_never_missed_are_taken_to_be_the_mean_and_it_is_said(tmp_path: Path) -> None:
    log = read(tmp_path, HEADER + "1,default,a,miss,1,100,0.1\n2,default,b,miss,1,300,0.3\n3,default,c,hit,1,,\n")
    assert (log.trace.models[2].size_bytes, log.trace.models[2].load_s) == (200, pytest.approx(0.2))
    assert any("1 of 3 models were never missed" in remark and "200 bytes" in remark for remark in log.remarks)


def test_a_file_of_sizes_wins_over_the_log(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        HEADER + "1,default,a,miss,1,100,0.1\n2,team,a,hit,1,,\n",
        sizes="model,size_bytes,load_s\na,1MiB,0.5\nteam/a,7,0.25\n",
    )
    assert [(model.name, model.size_bytes, model.load_at(3.0, is_first=True).load_s) for model in log.trace.models] == [
        ("a", 1 << 20, 0.5),
        ("team/a", 7, 0.25),
    ]
    assert log.remarks == ()


def test_the_least_is_time_and_model_without_a_header(tmp_path: Path) -> None:
    log = read(
        tmp_path, "2026-11-21T18:00:00Z,a\n2026-11-21T18:00:02Z,a\n", sizes="model,size_bytes,load_s\na,10,0.1\n"
    )
    assert log.trace.times_s == (0.0, 2.0)
    assert log.observed is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no requests; there is nothing to replay"),
        (HEADER, "no requests; there is nothing to replay"),
        ("when,model\n1,a\n", "line 2: the columns are when, model; needed are time_s"),
        ("time_s,size_bytes\n1,5\n", "line 2: the columns are time_s, size_bytes; needed are time_s"),
        (
            HEADER + "yesterday,default,a,miss,1,10,0.1\n",
            "line 2, field time_s: found 'yesterday'; allowed are seconds",
        ),
        (HEADER + "nan,default,a,miss,1,10,0.1\n", "line 2, field time_s: found 'nan'"),
        (HEADER + "1,default,,miss,1,10,0.1\n", "line 2, field model: found nothing"),
        (
            HEADER + "1,default,a,miss,1,-10,0.1\n",
            "line 2, field size_bytes: found '-10'; allowed are bytes above zero",
        ),
        (HEADER + "1,default,a,miss,1,10,soon\n", "line 2, field load_s: found 'soon'; allowed are seconds"),
        (HEADER + "1,default,a,warm,1,10,1\n", "line 2, field outcome: found 'warm'; allowed are hit, miss"),
        (
            HEADER + "1,default,a,miss,1,10,1,0,early\n",
            "line 2, field wait_ms: found 'early'; allowed are milliseconds",
        ),
        (HEADER + "1,default,a,miss,1,10,1,0,1,9\n", "line 2: found 10 fields, the columns are 9"),
        ("time_s,model,model\n1,a,a\n", "line 1: the column model is named twice"),
        ("1,a\n2,b\n", "nothing says the size_bytes of any of the 2 models"),
        ("time_s,model,size_bytes\n1,a,10\n", "nothing says the load_s of any of the 1 models"),
    ],
)
def test_what_cannot_be_read_is_named_by_line_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UnreadableLog, match=said):
        read(tmp_path, text)


def test_a_file_that_is_no_text_or_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\xff\xfe\x00")
    with pytest.raises(UnreadableLog, match=r"model\.onnx: no text"):
        read_request_log([tmp_path / "model.onnx"])
    with pytest.raises(UnreadableLog, match=r"gone\.csv: cannot be read: No such file"):
        read_request_log([tmp_path / "gone.csv"])
    with pytest.raises(UnreadableLog, match="cannot be read: Is a directory"):
        read_request_log([tmp_path])


def test_a_file_of_sizes_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "sizes.csv").write_text("model,bytes\na,10\n")
    with pytest.raises(UnreadableLog, match=r"line 2: the columns are model, bytes; needed are model and size_bytes"):
        read_sizes(tmp_path / "sizes.csv")
    (tmp_path / "sizes.csv").write_text("")
    with pytest.raises(UnreadableLog, match="no models"):
        read_sizes(tmp_path / "sizes.csv")
