"""Spans, what overlap can give, and the trace."""

import pytest

from rlir_ray.run.tracing import Span, TraceRecorder, overlap_metrics, span_since, waited_for


def span(start_s, end_s, host="here", process=1):
    return Span(start_s=start_s, end_s=end_s, host=host, process=process)


def test_ceiling_is_the_sum_of_the_stages_over_the_longest_and_reached_its_share_of_the_step():
    # Two samplers of 1 s each in a step: 1 s of wall-clock. 1 + 1 + 2 = 4 s one after the other, 2 s at best.
    found = overlap_metrics({"sample": (2.0, 2), "score": (1.0, 1), "learn": (2.0, 1)}, step_s=2.5)
    assert found["overlap/ceiling"] == pytest.approx(2.0)
    assert found["overlap/reached"] == pytest.approx(0.8)
    # 2 samplers x 2.5 s less the 2 s that they worked.
    assert found["time/sample_idle_s"] == pytest.approx(3.0)
    assert found["time/learn_idle_s"] == pytest.approx(0.5)


def test_stages_without_work_have_no_ceiling():
    assert overlap_metrics({"sample": (0.0, 1)}, step_s=1.0) == {"time/sample_idle_s": 1.0}


def test_a_wait_is_split_into_sampling_scoring_and_the_rest():
    # Waited from 10 to 20; the last sample ended at 14, its scores came at 18.
    found = waited_for(span(10, 20), [span(5, 11), span(11, 14)], [span(12, 13), span(15, 18)])
    assert found == {"time/wait_sample_s": 4.0, "time/wait_score_s": 4.0, "time/wait_other_s": 2.0}


def test_groups_that_were_there_before_the_wait_are_no_reason_for_it():
    assert waited_for(span(10, 11), [span(1, 2)], [span(2, 3)])["time/wait_other_s"] == 1.0


def test_spans_of_other_hosts_come_onto_this_clock_and_into_the_trace_once():
    recording = TraceRecorder({"there": 100.0}, is_kept=True)
    assert recording.add("rollout", "sample", span(101, 102, "there", 7)) == span(1.0, 2.0, "there", 7)
    for group in (0, 1):
        recording.add("reward", f"score {group}", span(2, 4))
    events = recording.events()["traceEvents"]
    work = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in work] == [
        ("sample", 0, 1_000_000),
        ("score 0", 1_000_000, 2_000_000),
    ]
    rows = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert rows[work[0]["pid"]] == "rollout there:7"


def test_a_recording_that_nobody_asks_for_holds_nothing():
    recording = TraceRecorder()
    recording.add("rollout", "sample", span_since(0.0))
    assert recording.events()["traceEvents"] == []
