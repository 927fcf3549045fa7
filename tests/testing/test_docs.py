"""What the tutorial says runs."""

import re
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "docs/tutorial-in-process.md"


def test_the_rollout_of_the_rl_tutorial_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    text = TUTORIAL.with_name("tutorial-rl-vllm.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})
    said = capsys.readouterr().out
    assert said.startswith("True True [('default', ")
    assert "step-2" in said


def test_the_tutorials_programs_run_twice_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    programs = [block for block in blocks if "run_virtual(main())" in block]
    assert len(programs) == 2
    said = []
    for _ in range(2):
        names: dict[str, object] = {}
        for program in programs:
            exec(program, names)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    first, second = said[0].splitlines()
    assert 3600 < float(first.split()[0]) < 3610
    assert len(second.split()[1]) == 32
