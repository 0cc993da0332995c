"""Commands that train, sample and evaluate. Heavy imports stay inside."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A run, one of its checkpoints, a diffusers folder, a name on the hub, or small-cpu."
    ),
]


class Sharding(StrEnum):
    """The names of `training.cost.ClusterSpec`."""

    none = "none"
    node = "node"
    all = "all"


class ExportFormat(StrEnum):
    """As `pipelines.export.export` names them."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    lora = "lora"


class QuantizedType(StrEnum):
    """As `model.quantization.quantized` names them."""

    int8 = "int8"
    fp8 = "fp8"


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file or a preset: debug, stage1-256, …")],
    run: Annotated[str | None, typer.Option("--run", help="Folder or s3:// of the run; default runs/NAME.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set optimizer.ema=0.999.")
    ] = None,
    from_checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Go on from this one of the run's checkpoints (step-000500); newer ones are removed."
        ),
    ] = None,
) -> None:
    """A run: checkpoints, metrics, TensorBoard. Run again, it resumes by itself."""
    from training.config import load_config

    settings = load_config(config, overrides or [])
    from pipelines.train import train as run_training

    run_training(settings, run or f"runs/{settings.name}", from_checkpoint=from_checkpoint)


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file or a preset: stage1-256, stage2, …")],
    gpus: Annotated[int, typer.Option(min=1, help="In all nodes together.")],
    device: Annotated[str, typer.Option(help="Name of the GPU: H100, A100, …")] = "H100",
    memory_gb: Annotated[float, typer.Option(min=1, help="Of a GPU.")] = 80.0,
    per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    gbps: Annotated[float, typer.Option(min=0.1, help="Gbit/s that a GPU sends to other nodes.")] = 400.0,
    node_gbps: Annotated[float, typer.Option(min=0.1, help="Gbit/s that a GPU sends within its node.")] = 3600.0,
    store_gbytes: Annotated[float, typer.Option(min=0.001, help="GB/s that a node reads, and writes.")] = 1.0,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the GPU's peak that computing reaches; as measured.")
    ] = 0.28,
    dollars: Annotated[float | None, typer.Option(min=0, help="For a GPU and hour.")] = None,
    shard: Annotated[
        Sharding | None, typer.Option(help="Weights over the GPUs of a node, over all, or none; default as configured.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set batch=1024.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What a run would cost, by arithmetic: memory of a GPU, seconds a step, hours, dollars. Nothing runs."""
    from training.config import load_config
    from training.cost import ClusterSpec, configured_sharding, run_cost

    settings = load_config(config, overrides or [])
    sharding = shard.value if shard else configured_sharding(settings)
    cluster = ClusterSpec(gpus, device, memory_gb, per_node, gbps, node_gbps, store_gbytes, mfu, dollars, sharding)
    from pipelines.reports.cost import print_cost

    print_cost(settings, cluster, run_cost(settings, cluster), as_json)


def sample(
    checkpoint: Checkpoint,
    task: Annotated[str, typer.Argument(metavar="TASK", help="text2image, depth, segmentation, edges, pose, views, …")],
    images: Annotated[
        list[str] | None, typer.Option("--image", help="A picture whose label is wanted, or that is referred to.")
    ] = None,
    condition: Annotated[str | None, typer.Option("--condition", help="A label whose picture is wanted.")] = None,
    prompt: Annotated[str, typer.Option(help="Caption of the picture.")] = "",
    names: Annotated[list[str] | None, typer.Option("--name", help="A class, for segmentation and boxes.")] = None,
    cameras: Annotated[
        list[str] | None, typer.Option("--camera", metavar="AZ,EL,DIST", help="One a view, known ones first.")
    ] = None,
    references: Annotated[
        list[str] | None, typer.Option("--reference", metavar="CAPTION", help="Of an --image of identity or subject.")
    ] = None,
    out: Annotated[str, typer.Option(help="Where to write the picture.")] = "sample.png",
    size: Annotated[
        str | None, typer.Option(metavar="SIDE|WxH", help="Around which to sample, or the exact size.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default as published.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1.0, help="Toward the prompt; 1 is none.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
) -> None:
    """One task from a checkpoint: --condition gives a picture, --image its label."""
    from pipelines.sample import sample as run

    written = run(
        checkpoint,
        task,
        out,
        images or [],
        condition,
        prompt,
        names or [],
        cameras or [],
        references or [],
        _size(size),
        steps,
        guidance,
        seed,
    )
    print("\n".join(written))


def _size(text: str | None) -> int | tuple[int, int] | None:
    """--size: a side, or width and height. Raises InputError for anything else."""
    from model.inputs import InputError

    sides = [] if text is None else text.lower().split("x")
    if not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides) or len(sides) > 2:
        raise InputError(f"--size {text}: give the side of a square of as many pixels, or width and height, as 512x384")
    if not sides:
        return None
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def export(
    checkpoint: Checkpoint,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="A new folder or s3:// prefix; a .safetensors for --format comfyui.")
    ],
    live: Annotated[bool, typer.Option("--live", help="The weights trained last, instead of their average.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="The transformer in half the size.")] = False,
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="A pipeline's folder; one file of the transformer; a run's adapter alone."),
    ] = ExportFormat.diffusers,
    quantize: Annotated[
        QuantizedType | None, typer.Option(help="Linear weights in 8 bits; says how far velocities are off then.")
    ] = None,
) -> None:
    """A checkpoint for other programs.

    OneDiffusionPipeline.from_pretrained(OUT) reads --format diffusers, and its load_lora_weights(OUT) --format lora. An
    adapter is merged into its model unless it is exported alone.
    """
    from model.quantization import Quantization
    from pipelines.export import Weights
    from pipelines.export import export as run

    weights: Weights = "live" if live else "averaged"
    kind: Quantization | None = quantize.value if quantize else None
    print(run(checkpoint, out, weights, "bf16" if bf16 else "fp32", form.value, kind))


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|DATASET", help="A folder or s3:// address.")],
) -> None:
    """What a run has learned, beside baselines, with samples of every task; or a dataset's labels beside what is true.

    What is true comes with the pictures: disparities, and same, person and mask of metadata beside them.
    """
    from labeling.dataset import DATASET_FILE, open_store

    if open_store(target).exists(DATASET_FILE):
        from pipelines.truth import evaluate_dataset, figure_lines

        print(*figure_lines(evaluate_dataset(target)), sep="\n")
        return
    from pipelines.evaluate import evaluate as evaluate_run

    run = target
    for name, figure in evaluate_run(run).items():
        print(f"{name}: {figure['model']:.2f}")
