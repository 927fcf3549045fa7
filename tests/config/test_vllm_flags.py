"""vLLM's command line: every flag, the spellings vLLM allows, errors worded as argparse does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.flags import Flag, human_int
from frontier_mock.config.vllm_flags import (
    ServeArgs,
    VllmArgs,
    parse_engine_args,
    parse_serve,
    simulator_flags,
    vllm_flags,
)

SAMPLES = {
    "text": "x",
    "texts": "x",
    "append": "x",
    "optional": "x",
    "json": "{}",
    "jsontext": "{}",
}
SPECIAL = {
    "dtype": "bfloat16",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "model": "some/model",
    "num_gpu_blocks_override": "100",
    "sim_eos_mean_tokens": "2.5",
    "hf_overrides": "{}",
    "kv_transfer_config": '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}',
    "speculative_config": '{"method": "ngram", "num_speculative_tokens": 2}',
}
BESIDE = {
    "enable_auto_tool_choice": ["--tool-call-parser", "hermes"],
    "spec_method": ["ngram", "--spec-tokens", "2"],
    "spec_model": ["ngram", "--spec-tokens", "2"],
    "spec_tokens": ["2", "--spec-method", "ngram"],
}
"""What a flag needs after it."""


def serve(*argv: str) -> ServeArgs:
    return parse_serve(argv, {})


def words(flag: Flag, option: str) -> list[str]:
    """A command line that gives `flag` a value its kind allows."""
    kind = flag.kind.split(":")[0].split(">")[0].split("<")[0]
    if flag.name in BESIDE:
        return [option, *BESIDE[flag.name]]
    if kind in ("switch", "flag"):
        return [option]
    if flag.name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        return [option, '["x"]']
    if flag.name in SPECIAL:
        return [option, SPECIAL[flag.name]]
    if kind == "choice":
        return [option, flag.kind.partition(":")[2].split(",")[0]]
    return [option, SAMPLES.get(kind, "0.5" if kind == "float" else "1")]


EVERY = vllm_flags() + simulator_flags()


@pytest.mark.parametrize("flag", EVERY, ids=lambda flag: flag.name)
def test_every_flag_is_accepted_in_every_spelling(flag: Flag) -> None:
    for option in flag.options:
        plain = serve("m", *words(flag, option))
        underscored = (
            serve("m", *words(flag, "--" + option[2:].replace("-", "_")))
            if (option.startswith("--"))
            else plain
        )
        assert plain == underscored
        idle = flag.options[0] in plain.without_effect
        # GPUs of an FFN side do nothing without one.
        assert idle == (not flag.effect or flag.name == "sim_ffn_hardware")
        if flag.kind == "switch":
            off = serve("m", f"--no-{flag.options[0][2:]}")
            assert idle or off != plain


_FOLDED_INTO = {
    "pp_layer_partition",
    "max_new_tokens",
    "afd",
    "weight_transfer_backend",
    "structured_outputs_backend",
    "num_redundant_experts",
    "kv_offload",
    "max_images",
}


def test_the_table_is_the_whole_of_vllm() -> None:
    names = [option for flag in EVERY for option in flag.options]
    assert len(names) == len(set(names))
    assert len(vllm_flags()) >= 300
    acted = {flag.name for flag in vllm_flags() if flag.effect}
    fields = set(VllmArgs.__dataclass_fields__)
    folded = {"compilation_config", "override_generation_config", "additional_config"}
    folded |= {"weight_transfer_config", "eplb_config", "structured_outputs_config"}
    folded |= {"spec_method", "spec_model", "spec_tokens"}
    folded |= {"kv_offloading_size", "kv_offloading_backend"}
    folded |= {"limit_mm_per_prompt", "language_model_only"}
    folded |= {"dbo_decode_token_threshold", "dbo_prefill_token_threshold"}
    assert acted - folded == fields - _FOLDED_INTO


def test_spellings_that_mean_the_same() -> None:
    assert serve("m", "-tp", "4") == serve("--model", "m", "--tensor_parallel_size=4")
    assert serve("m", "-tp=4") == serve("m", "--tensor-parallel-size", "4")
    assert serve("m", "-O0") == serve("m", "-O", "0") == serve("m", "--optimization-level=0")
    assert serve("m", "--disable-log-requests") == serve("m", "--no-enable-log-requests")
    assert not serve("m", "--disable-prefix-caching").vllm.enable_prefix_caching
    assert serve("m", "--max-model-len", "8K").vllm.max_model_len == 8192
    assert serve("m", "--max-model-len", "8k").vllm.max_model_len == 8000
    assert serve("m", "--max-model-len", "auto").vllm.max_model_len == -1
    assert serve("m", "--max-model-len", "-1").vllm.max_model_len == -1
    assert serve("m", "--served-model-name", "a", "b").vllm.served_model_name == ("a", "b")
    assert serve().vllm.model == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    "argv",
    [
        ["-cc", '{"cudagraph_capture_sizes": [1, 8], "cudagraph_mode": "none"}'],
        ["-cc.cudagraph_capture_sizes=[1,8]", "-cc.cudagraph_mode", "NONE"],
        ["--compilation_config.cudagraph_capture_sizes+", "1,8", "-O0"],
        ["--compilation-config.cudagraph_capture_sizes+=1", "-cc.pass_config.x", "2", "-O0"],
    ],
)
def test_json_flags_by_dotted_keys(argv: list[str]) -> None:
    made = serve("m", *argv).vllm
    assert made.cudagraph_capture_sizes is None or made.cudagraph_capture_sizes[0] == 1
    assert made.enforce_eager or made.optimization_level == 0


def test_the_api_key_of_the_environment_yields_to_the_flag() -> None:
    environment = {"VLLM_API_KEY": "env"}
    assert parse_serve(["m"], environment).vllm.api_key == ("env",)
    assert parse_serve(["m", "--api-key", "a", "b"], environment).vllm.api_key == ("a", "b")


def test_a_config_file_yields_to_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "model: from/file\ntensor_parallel_size: 4\nmax-num-seqs: 64\nenforce-eager: true\n"
        "enable-prefix-caching: false\nserved-model-name: [a, b]\n"
        "compilation-config: {max_cudagraph_capture_size: 32}\n"
    )
    made = serve("--config", str(path), "--max-num-seqs", "8").vllm
    assert (made.model, made.tensor_parallel_size, made.max_num_seqs) == ("from/file", 4, 8)
    assert made.enforce_eager
    assert not made.enable_prefix_caching
    assert made.served_model_name == ("a", "b")
    assert made.max_cudagraph_capture_size == 32


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["m", "--max-model-length", "3"],
            "unrecognized arguments: --max-model-length 3 (did you mean --max-model-len?)",
        ),
        (["m", "--sim-hardwear=h800"], "(did you mean --sim-hardware?)"),
        (["m", "extra"], "unrecognized arguments: extra"),
        (["m", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["m", "--port", "70000"], "argument --port: 70000 is not in 0..65535"),
        (["m", "--port"], "argument --port: expected one argument"),
        (["m", "-tp", "0"], "argument --tensor-parallel-size/-tp: 0 is not allowed; must be >= 1"),
        (["m", "--scheduling-policy", "lifo"], "argument --scheduling-policy: invalid choice"),
        (["m", "--dtype", "float32"], "argument --dtype: 'float32' is not simulated; allowed"),
        (
            ["m", "-q", "bitblas"],
            "argument --quantization: 'bitblas' is not simulated; allowed: fp8",
        ),
        (["m", "--kv-cache-dtype", "nvfp4"], "argument --kv-cache-dtype: 'nvfp4' is not simulated"),
        (["m", "-pp", "65"], "argument --pipeline-parallel-size: 65 is not in 1..64"),
        (["m", "--max-model-len", "8.5K"], "did you mean 8.5k?"),
        (["m", "--watermark", "1"], "1 is not allowed; must be < 1"),
        (["m", "--watermark", "nan"], "nan is not allowed"),
        (["m", "--gpu-memory-utilization", "0"], "0 is not allowed; must be > 0"),
        (["m", "--kv-transfer-config", "{x"], "'{x' is not valid JSON"),
        (["m", "-cc", "[]"], "argument --compilation-config: [] is not a JSON object"),
        (["m", "-cc.cudagraph_mode", "FAST"], "cudagraph_mode 'FAST'; allowed: NONE, PIECEWISE"),
        (["m", "-cc.cudagraph_capture_sizes", "[1.5]"], "1.5 is not a whole number"),
        (["m", "-cc.a", "1", "-cc.a.b", "2"], "a already has a value"),
        (["m", "-cc.mode"], "argument -cc.mode: expected one argument"),
        (["m", "--cudagraph-capture-sizes", "0"], "every size must be >= 1"),
        (["m", "--enable-auto-tool-choice"], "requires --tool-call-parser"),
        (
            ["m", "--override-generation-config", '{"max_new_tokens": 0}'],
            "max_new_tokens: 0 is not a whole number >= 1",
        ),
        (["m", "--override-generation-config", "3"], "3 is not a JSON object"),
        (["m", "--hf-overrides", "x"], "argument --hf-overrides: 'x' is not a JSON object"),
        (["m", "--hf-overrides.vocab_size", "0"], "vocab_size: 0 is not a whole number >= 1"),
        (["m", "--max", "1"], "ambiguous option: --max could match"),
        (["m", "--max-num-seqs", "9" * 400], "is not in 1..1000000"),
        (["m", "--max-num-seqs", "9" * 5000], "argument --max-num-seqs: invalid int value"),
        (["m", "--max-model-len", "9" * 400 + "k"], "is too large"),
        (["--config"], "argument --config: '' is not a .yaml or .yml file"),
        (["--config", "absent.yaml"], "argument --config: cannot read absent.yaml: No such file"),
        (["--allowed-origins", "{}"], "argument --allowed-origins: {} is not a JSON list"),
        (["--allowed-methods", "[1]"], "argument --allowed-methods: [1] is not a JSON list"),
        (["--sse-keep-alive-interval", "-1"], "argument --sse-keep-alive-interval"),
        (["--config", "a.json"], "argument --config: 'a.json' is not a .yaml or .yml file"),
        (["--config", "a.yaml", "--config", "b.yaml"], "argument --config: given more than once"),
    ],
)
def test_bad_flags_are_told_in_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_serve(argv, {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1", "unknown flag 'prot' (did you mean port?)"),
        ("- port", "expected a mapping of flag names to values"),
        ("port: [1", "not valid YAML"),
        ("port: {a: 1}", "argument --port: invalid int value"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_serve(["m", "--config", str(path)], {})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1k", 1000), ("1K", 1024), ("25.6k", 25600), ("2m", 2_000_000), ("3G", 3 << 30), ("7", 7)],
)
def test_human_numbers(text: str, value: int) -> None:
    assert human_int(text) == value


def test_numbers_with_suffixes_inside_json() -> None:
    idle = serve("m", "--ec-manager-config", '{"bytes": 80m, "name": "8k"}').without_effect
    assert idle == ("--ec-manager-config",)


OPTIONS = [option for flag in EVERY for option in flag.options]


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(OPTIONS)), max_size=4))
def test_any_command_line_parses_or_is_told_in_one_line(argv: list[str]) -> None:
    assert "\n" not in outcome(argv)


def outcome(argv: list[str]) -> str:
    try:
        return repr(parse_engine_args(argv))
    except ConfigError as error:
        return str(error)


def test_an_empty_served_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="--served-model-name: '' is no name"):
        parse_engine_args(["--served-model-name", ""])
