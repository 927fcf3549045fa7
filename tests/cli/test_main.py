"""The program's manners: help, unknown words, one line and exit code 2 for what cannot be."""

import json
from pathlib import Path

import pytest

from frontier_mock.cli import doctor
from frontier_mock.cli.main import COMMANDS, main

SMALL = """
name: small
cluster:
  workers:
    - {model: meta-llama/Llama-3.1-8B-Instruct, count: 2}
workload: {kind: burst, num_requests: 6, input_tokens: 100, output_tokens: {uniform: [5, 9]}}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert main([]) == 2


def test_a_family_of_commands_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vllm", "--help"]) == 0
    assert "frontier-mock vllm serve ..." in capsys.readouterr().out
    assert main(["sglang", "-h"]) == 0
    assert "launch_server" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("frontier-mock 0")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["simulat"], "unknown command 'simulat' (did you mean simulate?)"),
        (["vllm"], "vllm: needs a command; allowed: vllm serve"),
        (["vllm", "launch"], "vllm: 'launch' is not one of its commands; allowed: vllm serve"),
        (["simulate"], "the following arguments are required: scenario"),
        (["simulate", "absent.yaml"], "scenario absent.yaml: cannot be read: No such file"),
        (["simulate", "poisson-8xh80"], "(did you mean poisson-8xh800?)"),
        (["simulate", "poisson-8xh800", "--sed", "1"], "--sed 1 (did you mean --seed?)"),
        (["simulate", "poisson-8xh800", "--requests", "0"], "0 is not allowed; must be >= 1"),
        (["simulate", "poisson-8xh800", "--duration", "-1"], "duration: -1.0 is not a number"),
        (["simulate", "mooncake-conversation"], "conversation_trace.jsonl' not found"),
        (["trace", "inspect", "absent.jsonl"], "absent.jsonl: cannot be read: No such file"),
        (["trace", "synth", "/absent/x"], "/absent/x: cannot be written: No such file"),
        (["journal", "replay", "absent"], "journal absent: cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    argv: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FRONTIER_MOCK_DATA", raising=False)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("frontier-mock: error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "not valid YAML"),
        ("nmae: x", "unknown key 'nmae' (did you mean name?)"),
        ("name: x", "key cluster is missing; there is nothing to serve"),
        (SMALL.replace("workload:", "workload: null\nslo: null\n#"), "key workload is missing"),
        (SMALL.replace("num_requests: 6", "num_requests: six"), "workload.num_requests: got 'six'"),
        (SMALL.replace("8B", "9B"), "cluster.workers[0]: model: no profile for"),
    ],
)
def test_bad_scenarios(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["simulate", str(path)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_simulating_twice_gives_the_same_digest_and_so_does_its_journal(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, journal = tmp_path / "r.json", tmp_path / "j.jsonl"
    assert main(["simulate", scenario, "--json", str(result), "--journal", str(journal)]) == 0
    digest = json.loads(result.read_text())["digest"]
    assert main(["simulate", scenario, "--single-step", "--json", str(result)]) == 0
    assert json.loads(result.read_text())["digest"] == digest
    capsys.readouterr()
    assert main(["journal", "replay", str(journal)]) == 0
    assert capsys.readouterr().out.strip() == digest


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: "", "line 1 is not a journal's head"),
        (lambda text: text.replace('"frontier_mock_journal": 1', '"other": 1'), "line 1 is not"),
        (lambda text: text + "{}\n", "after its head, journal line 7"),
        (lambda text: text.replace("Llama-3.1-8B-Instruct", "x"), "model: no profile for"),
        (lambda text: text.replace('"block_size"', '"blocksize"'), "a head we did not write"),
        (lambda text: text.replace('"workers": [', '"workers": [3, '), "a head we did not write"),
        (lambda text: text.replace('"hardware"', '"hw"'), "a head we did not write: 'hardware'"),
    ],
)
def test_spoilt_journals(
    spoil: object, said: str, scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "j.jsonl"
    assert main(["simulate", scenario, "--journal", str(journal)]) == 0
    assert callable(spoil)
    journal.write_text(spoil(journal.read_text()))
    capsys.readouterr()
    assert main(["journal", "replay", str(journal)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_requests_and_duration_shorten_a_run(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "r.json"
    assert main(["simulate", scenario, "--requests", "2", "--json", str(result)]) == 0
    assert json.loads(result.read_text())["requests"]["completed"] == 2
    assert main(["simulate", scenario, "--duration", "2"]) == 2
    assert "this workload has no arrival times to cut at" in capsys.readouterr().err


def test_a_dated_trace_begins_at_zero_when_converted(tmp_path: Path) -> None:
    dated, out = tmp_path / "azure.csv", tmp_path / "out.jsonl"
    dated.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    )
    assert main(["trace", "convert", str(dated), str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["timestamp"] for row in rows] == [0, 4314]
    assert [row["output_length"] for row in rows] == [44, 109]


SESSIONS = """
name: sessions
cluster:
  workers:
    - {model: meta-llama/Llama-3.1-8B-Instruct, engine_args: {block-size: 32}}
workload:
  {kind: sessions, num_sessions: 3, turns: 3, concurrency: 3, input_tokens: 100, output_tokens: 40}
"""


def test_conversations_know_the_block_size_of_the_engine(tmp_path: Path) -> None:
    path, out = tmp_path / "sessions.yaml", tmp_path / "result.json"
    path.write_text(SESSIONS)
    assert main(["simulate", str(path), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["requests"]["completed"] == 9
    assert result["prefix_cache"]["hit_tokens"] > 0
    assert result["prefix_cache"]["hit_tokens"] % 32 == 0


def test_a_trace_can_be_made_up_converted_and_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, again = tmp_path / "made.jsonl", tmp_path / "again.jsonl"
    assert main(["trace", "synth", str(made), "--requests", "50"]) == 0
    assert main(["trace", "convert", str(made), str(again)]) == 0
    assert made.read_text() == again.read_text()
    with made.open("a") as file:
        file.write("not json\n")
    assert main(["trace", "inspect", str(made)]) == 0
    said = capsys.readouterr().out
    assert "50 of 51 rows read" in said
    assert "line 51: skipped" in said


def test_doctor_says_what_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "ok  Python" in said
    assert "KV events (frontier-mock[kv-events])" in said
    monkeypatch.setattr(doctor, "necessary_checks", lambda: [("a leg", False, "to stand on")])
    assert main(["doctor"]) == 1
    assert "MISSING  a leg: to stand on" in capsys.readouterr().out


def test_a_run_writes_what_was_asked_and_report_prints_it_again(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b"
    assert main(["simulate", scenario, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 of 6 requests completed" in said
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "result.json"]
    assert "<html" in (out / "report.html").read_text()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == said
    assert main(["report", str(out / "result.json")]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "key scenario is missing; not a result of this program"),
        ("[", "not a JSON file"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_report(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_unreadable_rows_are_counted_and_named_in_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,3\n1,many,3\n2,20,0\n"
    )
    path = tmp_path / "s.yaml"
    path.write_text(SMALL.split("workload:")[0] + "workload: {kind: trace, trace: t.csv}\n")
    assert main(["simulate", str(path), "--out", str(tmp_path)]) == 0
    trace = json.loads((tmp_path / "result.json").read_text())["trace"]
    assert (trace["rows"], trace["read"], trace["clipped"]) == (3, 2, 1)
    assert [line.split(":")[0] for line in trace["skipped"]] == ["line 3"]
    assert "trace: skipped line 3:" in capsys.readouterr().out


def test_flags_without_effect_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SMALL.replace("count: 2", "count: 2, engine_args: {trust-remote-code: true}"))
    assert main(["simulate", str(path)]) == 0
    warnings = capsys.readouterr().err
    assert warnings == "frontier-mock: warning: accepted without effect: --trust-remote-code\n"
