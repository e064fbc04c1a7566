"""The sampler `diffusers`: the images that the pipeline makes by hand, from whatever a training script leaves behind."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.samplers import Request
from ckptwatch.evaluate.samplers.diffusers import DiffusersSampler
from ckptwatch.model import FailureKind, Pipeline, Sampler
from tests.parity.evaluation_kit import make_job

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

COUNT, SEED, STEPS = 5, 30, 3
OPTIONS = {"num_inference_steps": STEPS}
PROMPTS = tuple(("a red car", "two dogs", "snow")[i % 3] for i in range(COUNT))
UNET = "diffusion_pytorch_model.safetensors"


# ---- pipelines of real classes, tiny ----


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def plain_unet(seed: int = 1, channels: int = 3, **changes):
    config = {"sample_size": 8, "in_channels": channels, "out_channels": channels, "block_out_channels": (8,),
              "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ("DownBlock2D",),
              "up_block_types": ("UpBlock2D",), "add_attention": False}
    return seeded(lambda: diffusers.UNet2DModel(**config | changes), seed)


def text_unet(seed: int = 1):
    return seeded(lambda: diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=2,
    ), seed)


def transformer(seed: int = 1):
    def make():
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
            patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4)
        for parameter in model.parameters():  # else labels start with no effect
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    return seeded(make, seed)


def vae():
    return seeded(lambda: diffusers.AutoencoderKL(
        block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)), 9)


def text_parts(directory: Path) -> dict:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (directory / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=12)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=16, bos_token_id=0, eos_token_id=1)
    return {"tokenizer": tokenizer, "text_encoder": seeded(lambda: transformers.CLIPTextModel(config), 8)}


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    place = tmp_path_factory.mktemp("ddpm")
    diffusers.DDPMPipeline(plain_unet(), diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    place = tmp_path_factory.mktemp("dit")
    diffusers.DiTPipeline(transformer(), vae(), diffusers.DDIMScheduler()).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    place = tmp_path_factory.mktemp("stable")
    diffusers.StableDiffusionPipeline(
        vae=vae(), unet=text_unet(), scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **text_parts(place),
    ).save_pretrained(place)
    return place


def adapter(directory: Path, seed: int, change=lambda name: f"unet.{name}") -> Path:
    """A LoRA of the text U-Net, saved as training scripts save it."""
    unet = text_unet()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k", "to_q", "to_v"]))
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
    directory.mkdir(parents=True)
    state = peft.get_peft_model_state_dict(unet)
    save_file({change(name): tensor.contiguous() for name, tensor in state.items()},
              directory / "pytorch_lora_weights.safetensors")
    return directory


# ---- asking for images, and making them by hand ----


def spec_of(base: Path | str = "", options: dict | None = None, **changes) -> Sampler:
    return Sampler(diffusers=Pipeline(base=str(base), **changes), options=OPTIONS if options is None else options)


def asked(directory: Path, spec: Sampler, checkpoint: Path, warned: list | None = None, **changes) -> Request:
    recipe = {"samples": COUNT, "seed": SEED, "batch_size": 2, "prompts": directory / "prompts.txt"}
    job = make_job(directory, sampler=spec, checkpoint=checkpoint, **recipe | changes)
    return Request(
        job=job, prompts=PROMPTS if job.recipe.prompts else ("",) * COUNT, scratch=directory, device="cpu",
        report=lambda *_: None, warn=(warned if warned is not None else []).append,
    )


def images(request: Request, sampler: DiffusersSampler | None = None) -> Tensor:
    sampler = sampler or DiffusersSampler(request.job.recipe.sampler, "cpu")
    return torch.cat([batch.images for batch in sampler.sample(request).batches()])


def failure(request: Request) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        images(request)
    return caught.value


def by_hand(place: Path, lora: Path | None = None, **arguments) -> Tensor:
    """All images in one call of the pipeline; `arguments` are of the call, or components to put in."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    for name in set(arguments) & set(pipeline.components):
        pipeline.components[name].load_state_dict(arguments.pop(name).state_dict())
    if lora is not None:
        pipeline.load_lora_weights(lora)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(COUNT)]
    made = pipeline(generator=generators, output_type="np", **{**OPTIONS, **arguments}).images
    return torch.from_numpy(made).permute(0, 3, 1, 2).mul(255).round().to(torch.uint8)


def same(one: Tensor, other: Tensor) -> bool:
    """Up to one grey level: kernels may differ between batch sizes."""
    return one.shape == other.shape and int((one.int() - other.int()).abs().max()) <= 1


def component(directory: Path, model) -> Path:
    model.save_pretrained(directory)
    return directory


# ---- each checkpoint is a pipeline ----


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_unconditional_images_are_those_of_the_pipeline(ddpm, tmp_path, batch_size):
    warned: list[str] = []
    made = images(asked(tmp_path, spec_of(), ddpm, warned, batch_size=batch_size, prompts=None))
    assert same(made, by_hand(ddpm, batch_size=COUNT)) and made.float().std() > 1
    assert warned == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_labels_are_the_classes_in_turn(dit, tmp_path, batch_size):
    made = images(asked(tmp_path, spec_of(), dit, batch_size=batch_size, num_classes=3, prompts=None))
    assert same(made, by_hand(dit, class_labels=[i % 3 for i in range(COUNT)]))
    assert not same(made, by_hand(dit, class_labels=[0] * COUNT))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_prompts_are_those_of_the_samples(stable, tmp_path, batch_size):
    warned: list[str] = []
    made = images(asked(tmp_path, spec_of(), stable, warned, batch_size=batch_size))
    assert same(made, by_hand(stable, prompt=list(PROMPTS)))
    assert not same(made, by_hand(stable, prompt=[PROMPTS[0]] * COUNT))
    assert warned == []


def test_options_and_image_size_reach_the_call(stable, tmp_path):
    options = {**OPTIONS, "guidance_scale": 3.0, "negative_prompt": "snow"}
    made = images(asked(tmp_path, spec_of(options=options), stable, image_size=16))
    call = {"negative_prompt": ["snow"] * COUNT, "guidance_scale": 3.0, "height": 16, "width": 16}
    expected = by_hand(stable, prompt=list(PROMPTS), **call)
    assert made.shape[-2:] == (16, 16) and same(made, expected)


def test_a_part_of_the_samples_is_that_part_of_the_whole(stable, tmp_path):
    parts = [images(asked(tmp_path, spec_of(), stable, parts=2, part=p)) for p in (0, 1)]
    assert all(len(part) for part in parts)
    assert same(torch.cat(parts), by_hand(stable, prompt=list(PROMPTS)))


def test_grey_images_become_rgb(tmp_path):
    place = tmp_path / "pipeline"
    diffusers.DDPMPipeline(plain_unet(channels=1), diffusers.DDPMScheduler()).save_pretrained(place)
    made = images(asked(tmp_path, spec_of(), place))
    assert made.shape[1] == 3 and torch.equal(made[:, 0], made[:, 2]) and made.float().std() > 1


def test_half_precision_is_close(ddpm, tmp_path):
    made = images(asked(tmp_path, spec_of(dtype="bfloat16"), ddpm))
    assert (made.int() - by_hand(ddpm, batch_size=COUNT).int()).abs().float().mean() < 6


def test_each_checkpoint_is_its_own_pipeline(ddpm, tmp_path):
    other = tmp_path / "checkpoint-2"
    diffusers.DDPMPipeline(plain_unet(2), diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(other)
    sampler = DiffusersSampler(spec_of(), "cpu")
    for place in (ddpm, other, ddpm / "model_index.json"):
        made = images(asked(tmp_path, spec_of(), place), sampler)
        assert same(made, by_hand(place.parent if place.is_file() else place, batch_size=COUNT))


def test_the_average_beside_a_component_is_a_variant(ddpm, tmp_path):
    place = shutil.copytree(ddpm, tmp_path / "checkpoint-1")
    component(place / "unet_ema", plain_unet(4))
    for variant, unet in (("unet", plain_unet(1)), ("unet_ema", plain_unet(4)), ("ema", plain_unet(4))):
        made = images(asked(tmp_path, spec_of(), place, variant=variant))
        assert same(made, by_hand(ddpm, batch_size=COUNT, unet=unet))


def test_a_safety_checker_is_left_out(stable, tmp_path):
    place = shutil.copytree(stable, tmp_path / "checkpoint-1")
    index = json.loads((place / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (place / "model_index.json").write_text(json.dumps(index))
    assert same(images(asked(tmp_path, spec_of(), place)), by_hand(stable, prompt=list(PROMPTS)))


def test_noise_outside_of_the_generators_is_told(dit, tmp_path):
    place = shutil.copytree(dit, tmp_path / "checkpoint-1")
    shutil.rmtree(place / "scheduler")
    diffusers.DDPMScheduler().save_pretrained(place / "scheduler")
    index = (place / "model_index.json").read_text()
    (place / "model_index.json").write_text(index.replace("DDIMScheduler", "DDPMScheduler"))
    warned: list[str] = []
    state = torch.get_rng_state()
    request = asked(tmp_path, spec_of(), place, warned, num_classes=3, prompts=None)
    first, second = images(request), images(request)
    assert torch.equal(first, second)  # at least that
    assert torch.equal(torch.get_rng_state(), state)
    assert any("DDPMScheduler" in text and "batch size" in text for text in warned)


# ---- a base, of which one component is replaced ----


def test_a_component_is_replaced_by_each_checkpoint(stable, tmp_path):
    sampler = DiffusersSampler(spec_of(stable), "cpu")
    for seed in (2, 3):
        checkpoint = component(tmp_path / f"checkpoint-{seed}", text_unet(seed))
        made = images(asked(tmp_path, spec_of(stable), checkpoint), sampler)
        assert same(made, by_hand(stable, prompt=list(PROMPTS), unet=text_unet(seed)))
    assert not same(made, by_hand(stable, prompt=list(PROMPTS)))


def test_a_transformer_is_found_too(dit, tmp_path):
    checkpoint = component(tmp_path / "checkpoint-1", transformer(2))
    made = images(asked(tmp_path, spec_of(dit), checkpoint, num_classes=3, prompts=None))
    assert same(made, by_hand(dit, class_labels=[i % 3 for i in range(COUNT)], transformer=transformer(2)))


def shards(directory: Path) -> Path:
    plain_unet(2).save_pretrained(directory, max_shard_size="5KB")
    assert len(list(directory.glob("*-of-*.safetensors"))) > 1
    return directory


def first_shard(directory: Path) -> Path:
    return min(shards(directory).glob("*-of-*.safetensors"))


def training_directory(directory: Path) -> Path:
    component(directory / "unet", plain_unet(2))
    torch.save({"state": 1}, directory / "optimizer.bin")
    return directory


def accelerate_state(directory: Path) -> Path:
    directory.mkdir()
    save_file(plain_unet(2).state_dict(), directory / "model.safetensors")
    return directory


def pickled(directory: Path) -> Path:
    plain_unet(2).save_pretrained(directory, safe_serialization=False)
    return directory


def one_file(directory: Path) -> Path:
    directory.mkdir()
    torch.save({f"module.{name}": tensor for name, tensor in plain_unet(2).state_dict().items()}, directory / "a.pt")
    return directory / "a.pt"


LAYOUTS = {
    "component": lambda d: component(d, plain_unet(2)), "shards": shards, "first shard": first_shard, "file": one_file,
    "training directory": training_directory, "accelerate": accelerate_state, "torch file": pickled,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_scripts_are_understood(ddpm, tmp_path, layout):
    checkpoint = LAYOUTS[layout](tmp_path / "checkpoint-1")
    assert same(images(asked(tmp_path, spec_of(ddpm), checkpoint)), by_hand(ddpm, batch_size=COUNT, unet=plain_unet(2)))


@pytest.mark.parametrize("variant,seed", [("", 2), ("unet", 2), ("unet_ema", 3), ("ema", 3)])
def test_variants_are_directories_of_a_training_directory(ddpm, tmp_path, variant, seed):
    checkpoint = training_directory(tmp_path / "checkpoint-1")
    component(checkpoint / "unet_ema", plain_unet(3))
    made = images(asked(tmp_path, spec_of(ddpm), checkpoint, variant=variant))
    assert same(made, by_hand(ddpm, batch_size=COUNT, unet=plain_unet(seed)))


@pytest.mark.parametrize("variant,seed", [("model", 2), ("ema.shadow", 3)])
def test_variants_are_entries_of_a_file(ddpm, tmp_path, variant, seed):
    torch.save({"model": plain_unet(2).state_dict(), "ema": {"shadow": plain_unet(3).state_dict()}, "step": 4},
               tmp_path / "step_4.pt")
    made = images(asked(tmp_path, spec_of(ddpm), tmp_path / "step_4.pt", variant=variant))
    assert same(made, by_hand(ddpm, batch_size=COUNT, unet=plain_unet(seed)))


def test_the_component_can_be_named(stable, tmp_path):
    other = seeded(vae, 1)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.5
    checkpoint = component(tmp_path / "checkpoint-1", other)
    made = images(asked(tmp_path, spec_of(stable, component="vae"), checkpoint))
    assert same(made, by_hand(stable, prompt=list(PROMPTS), vae=other))


def test_missing_and_unknown_weights_are_named_and_counted(ddpm, tmp_path):
    state = plain_unet(2).state_dict()
    del state["conv_in.bias"]
    save_file(state | {"conv_extra.bias": torch.ones(2)}, tmp_path / "a.safetensors")
    error = failure(asked(tmp_path, spec_of(ddpm), tmp_path / "a.safetensors"))
    assert error.kind == FailureKind.CHECKPOINT and not error.retryable
    assert "lacks 1 of the" in error.cause and "(conv_in.bias)" in error.cause
    assert "has 1 that unet does not know (conv_extra.bias)" in error.cause


def test_weights_of_another_component_are_refused(stable, tmp_path):
    checkpoint = component(tmp_path / "checkpoint-1", vae())
    error = failure(asked(tmp_path, spec_of(stable), checkpoint))
    assert error.kind == FailureKind.CHECKPOINT and "lacks" in error.cause and not error.retryable
    assert error.hint == "its class is AutoencoderKL, that of unet is UNet2DConditionModel"


def test_weights_of_another_size_are_refused(ddpm, tmp_path):
    save_file(plain_unet(2, block_out_channels=(16,)).state_dict(), tmp_path / "a.safetensors")
    error = failure(asked(tmp_path, spec_of(ddpm), tmp_path / "a.safetensors"))
    assert error.kind == FailureKind.CHECKPOINT and "other shapes" in error.cause
    assert "conv_in.weight is 16×3×3×3, there 8×3×3×3" in error.cause


def test_equal_shapes_of_another_configuration_are_refused(ddpm, tmp_path):
    checkpoint = component(tmp_path / "checkpoint-1", plain_unet(2, act_fn="relu", dropout=0.1))
    error = failure(asked(tmp_path, spec_of(ddpm), checkpoint))
    assert error.kind == FailureKind.CHECKPOINT and "act_fn relu, there silu" in error.cause
    assert "dropout" not in error.cause  # plays no part in sampling


def test_another_default_size_is_told(ddpm, tmp_path):
    warned: list[str] = []
    checkpoint = component(tmp_path / "checkpoint-1", plain_unet(2, sample_size=16))
    made = images(asked(tmp_path, spec_of(ddpm), checkpoint, warned, prompts=None))
    assert made.shape[-1] == 8 and len(warned) == 1 and "sample_size 16, there 8" in warned[0]


def test_weights_that_are_not_finite_are_named(ddpm, tmp_path):
    unet = plain_unet(2)
    with torch.no_grad():
        unet.conv_out.bias[1] = torch.nan
    checkpoint = component(tmp_path / "checkpoint-1" / "unet", unet).parent
    error = failure(asked(tmp_path, spec_of(ddpm), checkpoint))
    assert error.kind == FailureKind.NOT_FINITE and "conv_out.bias" in error.cause and not error.retryable
    whole = shutil.copytree(ddpm, tmp_path / "whole")
    component(whole / "unet", unet)
    error = failure(asked(tmp_path, spec_of(), whole))
    assert error.kind == FailureKind.NOT_FINITE and "unet.conv_out.bias" in error.cause


def test_a_checkpoint_without_the_component_says_what_it_holds(ddpm, tmp_path):
    component(tmp_path / "checkpoint-1" / "transformer", transformer())
    error = failure(asked(tmp_path, spec_of(ddpm), tmp_path / "checkpoint-1"))
    assert error.kind == FailureKind.CHECKPOINT and "unet/" in error.cause and "there is transformer/" in error.cause
    error = failure(asked(tmp_path, spec_of(ddpm), tmp_path / "checkpoint-1", variant="ema"))
    assert "unet_ema/" in error.cause and "'ema'" in error.cause


# ---- LoRA ----


def test_each_lora_is_put_onto_the_weights_of_the_base(stable, tmp_path):
    sampler = DiffusersSampler(spec_of(stable), "cpu")
    first, second = adapter(tmp_path / "checkpoint-1", 1), adapter(tmp_path / "checkpoint-2", 2)
    full = component(tmp_path / "checkpoint-3", text_unet(3))
    expected = {lora: by_hand(stable, lora, prompt=list(PROMPTS)) for lora in (first, second)}
    assert not same(*expected.values()) and not same(expected[first], by_hand(stable, prompt=list(PROMPTS)))
    for checkpoint, variant in ((first, ""), (second, "lora"), (second / "pytorch_lora_weights.safetensors", "")):
        lora = first if checkpoint == first else second
        assert same(images(asked(tmp_path, spec_of(stable), checkpoint, variant=variant), sampler), expected[lora])
    made = images(asked(tmp_path, spec_of(stable), full), sampler)
    assert same(made, by_hand(stable, prompt=list(PROMPTS), unet=text_unet(3)))  # nothing of the LoRA is left
    assert same(images(asked(tmp_path, spec_of(stable), first), sampler), expected[first])  # nor of the checkpoint


def test_a_lora_goes_onto_a_base_in_half_precision(stable, tmp_path):
    checkpoint = adapter(tmp_path / "checkpoint-1", 1)
    made = images(asked(tmp_path, spec_of(stable, dtype="bfloat16"), checkpoint)).int()
    full, base = by_hand(stable, checkpoint, prompt=list(PROMPTS)).int(), by_hand(stable, prompt=list(PROMPTS)).int()
    assert (made - full).abs().float().mean() < (made - base).abs().float().mean() / 3


@pytest.mark.parametrize("change", [
    lambda name: f"transformer.{name}", lambda name: f"unet.{name.replace('to_q', 'to_other')}",
])
def test_a_lora_that_does_not_fit_is_refused(stable, tmp_path, change):
    error = failure(asked(tmp_path, spec_of(stable), adapter(tmp_path / "checkpoint-1", 1, change)))
    assert error.kind == FailureKind.CHECKPOINT and "have no place" in error.cause and not error.retryable


def test_a_pipeline_without_loras_says_so(ddpm, tmp_path):
    error = failure(asked(tmp_path, spec_of(ddpm), adapter(tmp_path / "checkpoint-1", 1)))
    assert error.kind == FailureKind.RECIPE and "DDPMPipeline takes none" in error.cause


# ---- what the recipe asks for ----


def test_unknown_options_are_told_which_there_are(ddpm, tmp_path):
    error = failure(asked(tmp_path, spec_of(options={"steps": 3}), ddpm))
    assert error.kind == FailureKind.RECIPE and "takes no option steps" in error.cause
    assert error.hint == "it takes num_inference_steps"


@pytest.mark.parametrize("option", ["prompt", "generator", "output_type", "batch_size"])
def test_what_follows_from_the_recipe_is_no_option(stable, tmp_path, option):
    error = failure(asked(tmp_path, spec_of(options={option: "x"}), stable))
    assert error.kind == FailureKind.RECIPE and f"option {option}" in error.cause and not error.retryable


def test_labels_that_are_missing_are_asked_for(dit, tmp_path):
    error = failure(asked(tmp_path, spec_of(), dit))
    assert error.kind == FailureKind.RECIPE and "class_labels" in error.cause and "num_classes" in error.hint


def test_labels_and_prompts_without_effect_are_told(ddpm, stable, tmp_path):
    warned: list[str] = []
    images(asked(tmp_path, spec_of(), ddpm, warned, num_classes=3))
    assert len(warned) == 2 and "num_classes" in warned[0] and "prompts" in warned[1]
    images(asked(tmp_path, spec_of(), stable, warned, prompts=None))
    assert len(warned) == 3 and "empty" in warned[2]


def test_float16_on_a_cpu_is_refused(ddpm):
    with pytest.raises(EvaluationError, match="float16") as caught:
        DiffusersSampler(spec_of(ddpm, dtype="float16"), "cpu")
    assert caught.value.kind == FailureKind.RECIPE


def test_a_component_that_the_base_lacks_is_told_with_those_it_has(stable):
    with pytest.raises(EvaluationError, match="no component transformer") as caught:
        DiffusersSampler(spec_of(stable, component="transformer"), "cpu")
    assert caught.value.kind == FailureKind.RECIPE and "vae, text_encoder, unet" in caught.value.hint


def test_a_base_that_is_not_there_is_a_fault_of_the_recipe(tmp_path):
    with pytest.raises(EvaluationError, match="no such directory") as caught:
        DiffusersSampler(spec_of(tmp_path / "base"), "cpu")
    assert caught.value.kind == FailureKind.RECIPE


def test_without_the_library_its_installation_is_told(ddpm, monkeypatch):
    from ckptwatch.evaluate.samplers import diffusers_pipeline

    monkeypatch.setitem(sys.modules, "diffusers", None)
    diffusers_pipeline.library.cache_clear()
    with pytest.raises(EvaluationError) as caught:
        DiffusersSampler(spec_of(ddpm), "cpu")
    assert caught.value.kind == FailureKind.RECIPE and caught.value.hint == "pip install 'ckptwatch[diffusers]'"


# ---- checkpoints are untrusted, and may be incomplete ----


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("change", [{"unet": ["my_unet", "Model"]}, {"_class_name": ["pipeline", "Mine"]}])
def test_code_of_a_checkpoint_is_never_run(ddpm, tmp_path, change):
    place, mark = shutil.copytree(ddpm, tmp_path / "checkpoint-1"), tmp_path / "executed"
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | change))
    for file in (place / "unet" / "my_unet.py", place / "pipeline.py"):
        file.write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Model: pass\nclass Mine: pass\n")
    error = failure(asked(tmp_path, spec_of(), place))
    assert error.kind == FailureKind.CHECKPOINT and "code of its own" in error.cause and not error.retryable
    assert not mark.exists()


def test_pickles_of_a_checkpoint_are_never_run(stable, tmp_path):
    mark = tmp_path / "executed"
    for part, name in (("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")):
        place = shutil.copytree(stable, tmp_path / f"checkpoint-{part}")
        for file in (place / part).glob("*.safetensors"):
            file.unlink()
        torch.save({"weight": Evil(mark)}, place / part / name)
        error = failure(asked(tmp_path, spec_of(), place))
        assert error.kind == FailureKind.CHECKPOINT
    error = failure(asked(tmp_path, spec_of(stable), tmp_path / "checkpoint-unet"))
    assert error.kind == FailureKind.CHECKPOINT
    assert not mark.exists()


def test_pipelines_of_torch_files_are_read(ddpm, tmp_path):
    place = tmp_path / "checkpoint-1"
    shutil.copytree(ddpm, place)
    torch.save(load_file(place / "unet" / UNET), place / "unet" / "diffusion_pytorch_model.bin")
    (place / "unet" / UNET).unlink()
    assert same(images(asked(tmp_path, spec_of(), place)), by_hand(ddpm, batch_size=COUNT))


@pytest.mark.parametrize("part,file", [("unet", UNET), ("text_encoder", "model.safetensors")])
def test_weights_that_a_pipeline_lacks_are_not_drawn_at_random(stable, tmp_path, part, file):
    place = shutil.copytree(stable, tmp_path / "checkpoint-1")
    state = load_file(place / part / file)
    gone = next(name for name in state if name.endswith("bias"))
    del state[gone]
    save_file(state, place / part / file, metadata={"format": "pt"})
    error = failure(asked(tmp_path, spec_of(), place))
    assert error.kind == FailureKind.CHECKPOINT and "missing" in error.cause and gone in error.cause


def test_weights_that_a_pipeline_lacks_are_noticed_where_libraries_were_told_to_be_silent(stable, tmp_path):
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        test_weights_that_a_pipeline_lacks_are_not_drawn_at_random(stable, tmp_path, "text_encoder", "model.safetensors")
    finally:
        transformers.logging.set_verbosity_warning()


def test_a_directory_that_is_no_pipeline_asks_for_a_base(tmp_path):
    error = failure(asked(tmp_path, spec_of(), component(tmp_path / "checkpoint-1", plain_unet())))
    assert error.kind == FailureKind.CHECKPOINT and "diffusers.base" in error.hint and not error.retryable


def test_sampling_draws_no_progress_bars(stable, tmp_path, capfd):
    images(asked(tmp_path, spec_of(), stable))
    out, err = capfd.readouterr()
    assert "it/s" not in out + err and "%|" not in out + err
