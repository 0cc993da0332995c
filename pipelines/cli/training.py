"""Commands that train, sample and evaluate. Heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated

import typer

from model.constants import SIZE_STEP


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file or a preset: debug, stage1-256, …")],
    run: Annotated[str | None, typer.Option("--run", help="Folder or s3:// of the run; default runs/NAME.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set optimizer.ema=0.999.")
    ] = None,
) -> None:
    """A run: checkpoints, metrics, TensorBoard. Run again, it resumes by itself."""
    from training.config import load_config

    settings = load_config(config, overrides or [])
    from pipelines.train import train as run_training

    run_training(settings, run or f"runs/{settings.name}")


def sample(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A run, or one of its checkpoints.")],
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
    size: Annotated[int | None, typer.Option(min=SIZE_STEP, help="Around which to sample; default as trained.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default as published.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1.0, help="Toward the prompt; 1 is none.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
        size,
        steps,
        guidance,
        seed,
    )
    print("\n".join(written))


def evaluate(run: Annotated[str, typer.Argument(metavar="RUN", help="A folder or s3:// address.")]) -> None:
    """What a run has learned: figures beside baselines, and samples of every task, of its newest checkpoint."""
    from pipelines.evaluate import evaluate as evaluate_run

    for name, figure in evaluate_run(run).items():
        print(f"{name}: {figure['model']:.2f}")
