"""`coralline lab fetch` and `coralline lab prune`: the files of the lab."""

from __future__ import annotations

from pathlib import Path

import typer

from coralline.cli import output
from hardware_lab import options


def add(lab: typer.Typer) -> None:
    """Add the verbs."""
    for function, example in (
        (fetch, "fetch 1f0c9a7be2d34f68 power.parquet --out raw"),
        (prune, "prune --older-than 90d --dry-run"),
    ):
        lab.command(function.__name__, epilog=f"Example: coralline lab {example}")(function)


def fetch(
    job_id: str = typer.Argument(..., metavar="JOB", help="Id of the job."),
    name: str | None = typer.Argument(
        None, help="Of one file; `model` and `against` are what was measured. Else all raw files."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write them into."),
    where: str | None = options.where(),
    artifacts: str | None = options.artifacts(),
    json: bool = options.json_only(),
) -> None:
    """Download the raw samples and power traces of a job, or its model; verified."""
    from coralline.errors import UserError
    from coralline.files import make_folder
    from hardware_lab.artifacts.cache import fetch_model
    from hardware_lab.artifacts.download import download
    from hardware_lab.lab import open_lab

    store = open_lab(where, artifacts)
    job, files = store.job(job_id), store.files(job_id)
    models = {"model": job.model, "against": job.model_against}
    model = models.get(name or "")
    if name is not None and name not in files.kept and model is None:
        known = [*files.kept, *(side for side, found in models.items() if found is not None)]
        raise UserError(f"job {job_id!r} has no file {name!r}; it has {', '.join(known)}")
    make_folder(out)
    if name is not None and model is not None:
        written = {name: fetch_model(store.artifacts, model, out)}
    else:
        written = {each: out / each for each in files.kept if name in (None, each)}
        for each, path in written.items():
            make_folder(path.parent)
            download(store.artifacts, files.kept[each].ref, path)
    if json:
        output.print_json(
            {
                "files": {each: str(path) for each, path in written.items()},
                "not_stored": files.not_stored,
            }
        )
        return
    for path in written.values():
        print(path)
    if files.not_stored is not None:
        print(f"raw files are not stored: {files.not_stored}")
    elif not written:
        print(f"job {job_id} is {job.state} and has no files")


def prune(
    older_than: str = typer.Option(..., "--older-than", help="90d, say; at least 2d."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be deleted."),
    where: str | None = options.where(),
    artifacts: str | None = options.artifacts(),
    json: bool = options.json_only(),
) -> None:
    """Delete old models and raw files that no job needs which waits, runs or ended since.

    The measurements themselves, with all samples, stay in the lab's database.
    """
    from hardware_lab.lab import open_lab

    age_s = options.seconds_of(older_than, "age")
    assert age_s is not None
    found = open_lab(where, artifacts).prune(age_s, dry_run=dry_run)
    if json:
        output.print_json({**found.to_json(), "dry_run": dry_run})
        return
    for artifact in found.artifacts:
        print(f"{artifact.ref}  {artifact.size_bytes} bytes")
    done = "would be deleted" if dry_run else "deleted"
    print(
        f"{len(found.artifacts)} artifacts of {found.size_bytes / 2**20:.1f} MiB {done}, and "
        f"{found.unfinished} unfinished uploads"
    )
