"""`python -m fusion_tinting.convert`: released OpenCLIP checkpoints from pickles to safetensors, once."""

import shutil
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--trust-pickles", is_flag=True, help="Needed: pickles can run any code put there.")
@click.option("--model-name", help="open_clip's name of the architecture, where no folder's name tells it.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def main(folder: Path, out: Path, trust_pickles: bool, model_name: str | None, force: bool) -> None:
    """Turn every .pt file in FOLDER into safetensors at the same place in OUT.

    Files are image encoders (zeroshot.pt, TASK/finetuned.pt), of which the visual tower is kept, and
    classification heads (head_TASK.pt). Use them with `modelpool.model_dir=OUT`.
    """
    out = out.resolve()  # also `.` has a name then
    files = sorted(folder.rglob("*.pt"))
    if not files:
        raise click.ClickException(f"There is no .pt file in `{folder}`.")
    if folder.resolve().is_relative_to(out):
        raise click.ClickException(f"`{out}` holds `{folder}`, which would be lost. Choose another OUT.")
    if out.exists() and any(out.iterdir()) and not force:
        raise click.ClickException(f"`{out}` is not empty. Choose another folder, or add --force.")
    if not trust_pickles:
        raise click.ClickException(
            "The released files are pickles of whole modules: loading them can run any code that was put "
            "there. Add --trust-pickles if you trust their author."
        )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for file in files:
            click.echo(f"{file} -> {out / file.relative_to(folder).with_suffix('.safetensors')}")
            convert_file(file, unfinished / file.relative_to(folder), model_name)
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def convert_file(source: Path, target: Path, model_name: str | None = None) -> None:
    """Write a released encoder or head, a pickle that is trusted, as safetensors beside `target`.

    Raises:
        ValueError: a file that is neither; an encoder whose architecture nothing tells.
        OSError: it cannot be written.
    """
    from fusion_tinting.families import open_clip, open_clip_files  # here: they take seconds to import

    stored = open_clip_files.read(source, trust_pickles=True)
    if any(name.startswith(open_clip.VISUAL) for name in stored.tensors):
        model = open_clip_files.load_encoder(
            source, model_name or _name_among(source.parts), trust_pickles=True
        )
    else:
        model = open_clip_files.load_head(source, trust_pickles=True)
    model.save(target.with_suffix(open_clip_files.CONVERTED))


def _name_among(folders: tuple[str, ...]) -> str | None:
    """The innermost folder's name that open_clip knows."""
    import open_clip

    known = set(open_clip.list_models())
    return next((name for name in reversed(folders) if name in known), None)


if __name__ == "__main__":
    main()
