"""The access logs that a demo leaves."""

from __future__ import annotations

from pathlib import Path

from mesh.demo.access_logs import access_log_paths, begin_anew, take_out_baseline


def test_a_pod_alone_writes_the_named_file_and_the_pods_of_a_pool_one_each() -> None:
    assert access_log_paths(Path("a/demo.csv"), [""]) == [Path("a/demo.csv")]
    assert access_log_paths(Path("a/demo.csv"), ["pod-0", "pod-1"]) == [
        Path("a/demo-pod-0.csv"),
        Path("a/demo-pod-1.csv"),
    ]


def test_a_log_is_begun_anew_and_holds_only_what_the_demo_counts(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "demo.csv"
    begin_anew([log])
    log.write_text("time_s,tenant,model\n1,default,baseline--iris\n2,default,iris\n")
    take_out_baseline([log])
    assert log.read_text() == "time_s,tenant,model\n2,default,iris\n"
    begin_anew([log])
    assert log.read_text() == ""
    take_out_baseline([log])
    assert [path.name for path in log.parent.iterdir()] == ["demo.csv"]
