"""Images: what they are to a model, and what encoding them takes."""

from dataclasses import replace

import pytest

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec, VisionSpec
from frontier_mock.cost.step import TabledStepCost, build_step_cost
from frontier_mock.cost.vision import ImageShape, image_shape, vision_weights

QWEN25 = "Qwen/Qwen2.5-VL-7B-Instruct"
QWEN3 = "Qwen/Qwen3-VL-8B-Instruct"


def vision(name: str) -> VisionSpec:
    found = load_model(name).vision
    assert found is not None
    return found


def cost(name: str = QWEN25, tp: int = 1, hardware: str = "h800") -> TabledStepCost:
    hw = load_hardware(hardware)
    engine = load_engine("vllm-0.33")
    model, precision = load_model(name), PrecisionSpec()
    spec = StepSpec(hw, model, ParallelSpec(tp=tp), precision, engine, True, ())
    return build_step_cost(spec, load_kernels(hw.kernels))


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        # Documented with the checkpoints: 28 pixels a token, 4 to 16,384 tokens an image.
        (QWEN25, (1024, 1024), 37 * 37),
        (QWEN25, (1920, 1080), 69 * 39),
        (QWEN25, (28, 28), 4),
        (QWEN25, (10, 10), 4),
        (QWEN25, (10_000, 10_000), 127 * 127),
        # 32 pixels a token.
        (QWEN3, (1024, 1024), 32 * 32),
        (QWEN3, (100, 100), 64),
        (QWEN3, (1, 150), 98),
    ],
)
def test_an_image_becomes_as_many_tokens_as_its_processor_makes(
    name: str, size: tuple[int, int], tokens: int
) -> None:
    shape = image_shape(vision(name), *size)
    assert shape == ImageShape(4 * tokens, tokens)
    assert tokens <= vision(name).max_tokens


def test_an_image_of_fixed_size_is_always_as_many_tokens() -> None:
    gemma = VisionSpec(27, 1152, 4304, 16, 14, 2560, merge=4, mergers=0, image_size=896)
    assert {image_shape(gemma, *size) for size in ((1, 1), (5000, 20))} == {ImageShape(4096, 256)}
    assert gemma.max_tokens == 256


def test_an_elongated_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aspect ratio must be smaller than 200, got 201\.0"):
        image_shape(vision(QWEN25), 201, 1)


def test_encoders_have_as_many_parameters_as_published() -> None:
    # Qwen2.5-VL: "a ViT of about 675 M"; Qwen3-VL-8B: 8.77 B with a text model of 8.19 B.
    assert vision_weights(vision(QWEN25)) / 1e6 == pytest.approx(676, abs=5)
    assert vision_weights(vision(QWEN3)) / 1e9 == pytest.approx(8.77 - 8.19, abs=0.02)


@pytest.mark.parametrize("name", [QWEN25, QWEN3])
@pytest.mark.parametrize("hardware", ["h800", "h20", "a100"])
def test_nothing_is_encoded_faster_than_the_hardware_can(name: str, hardware: str) -> None:
    price, peak = cost(name, hardware=hardware), load_hardware(hardware).peak_bf16_flops
    last = 0
    for patches in (256, 1024, 4096, 16_384, 65_536):
        took_ns = price.encode_ns([patches])
        assert took_ns >= last
        assert took_ns / 1e9 > 2 * 0.9 * vision_weights(vision(name)) * patches / peak
        last = took_ns


def test_images_of_one_call_share_launches_and_windows_keep_attention_cheap() -> None:
    price = cost()
    assert price.encode_ns([]) == 0
    assert price.encode_ns([256] * 8) < 3 * price.encode_ns([256])
    whole = replace(price.spec, model=replace(price.spec.model, vision=_whole(vision(QWEN25))))
    unwindowed = build_step_cost(whole, load_kernels(load_hardware("h800").kernels))
    assert unwindowed.encode_ns([40_000]) > 1.5 * price.encode_ns([40_000])


def _whole(spec: VisionSpec) -> VisionSpec:
    return replace(spec, window=0)


def test_tensor_parallel_ranks_share_the_encoder() -> None:
    # All-reduces of every patch eat most of it.
    assert cost(tp=4).encode_ns([20_000]) < cost(tp=1).encode_ns([20_000])


def test_a_model_of_text_alone_has_nothing_to_encode() -> None:
    assert cost("Qwen/Qwen3-8B").encode_ns([400]) == 0
