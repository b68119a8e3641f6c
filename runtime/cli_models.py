"""``tandem models``: list model versions, and remove those that nobody serves."""

from __future__ import annotations

from typing import Any

import click

from runtime.cli_options import ListsByDefault, address_option, in_words, json_option, show, store_option


@click.group(cls=ListsByDefault)
def models() -> None:
    """List model versions (`tandem models [NAME]`), look into one, publish or remove one."""


@models.command("ls")
@click.argument("name", required=False)
@store_option
@json_option
def list_(name: str | None, store: str | None, as_json: bool) -> None:
    """List the model versions in the store, of NAME or all."""
    from storage.store import open_store

    opened = open_store(store)
    found = opened.models(name)
    if name and not found:
        # Says which names there are.
        opened.model(name, field="NAME")
    show(
        [_row(model) for model in found],
        ["model", "kind", "trained", "base", "template", "size", "created_at"],
        as_json,
    )


def _trained(manifest: Any) -> str:
    """How it was made, in a few words: ``sft lora, merged``; empty where it was not trained here."""
    words = " ".join(word for word in (manifest.stage, manifest.finetuning_type) if word)
    return f"{words}, merged" if manifest.merged else words


def _row(model: Any) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "model": model.ref,
        "kind": manifest.kind,
        "trained": _trained(manifest),
        "stage": manifest.stage,
        "finetuning_type": manifest.finetuning_type,
        "merged": manifest.merged,
        "base": manifest.base,
        "template": manifest.template,
        "run": manifest.run,
        "metrics": manifest.metrics,
        "size_bytes": manifest.total_bytes,
        "size": in_words(manifest.total_bytes),
        "created_at": manifest.created_at,
        "created_by": manifest.created_by,
        "revision": model.revision,
        "uri": model.uri,
    }


@models.command("show")
@click.argument("model", metavar="MODEL")
@store_option
@json_option
def show_(model: str, store: str | None, as_json: bool) -> None:
    """Show what MODEL consists of: parameters by part, types, bytes, and its KV cache per token.

    MODEL is a name, NAME/VERSION, a folder or an address. Only the headers of its files are read.
    """
    from runtime.model_report import print_model
    from storage.store import open_store

    print_model(open_store(store).model(model, field="MODEL"), as_json=as_json)


@models.command()
@click.argument("name")
@click.argument("source")
@click.option("--version", help="Default: the next of v1, v2, and so on.")
@click.option("--template", help="LLaMA-Factory's chat template that the model was trained with.")
@store_option
def publish(name: str, source: str, version: str | None, template: str | None, store: str | None) -> None:
    """Commit the model in SOURCE as a new version of NAME.

    SOURCE is a folder, or an address: gs://bucket/folder, s3://bucket/folder, hf://org/name.
    """
    from runtime.transfer_bar import TransferBar
    from storage.store import open_store

    with TransferBar(f"publish {name}") as bar:
        added = open_store(store).publish_from(source, name, version=version, template=template, progress=bar)
    click.echo(f"Published {added.ref}")


@models.command()
@click.argument("model", metavar="NAME/VERSION")
@address_option
@store_option
def rm(model: str, address: str | None, store: str | None) -> None:
    """Remove one model version. Refused while an app of the cluster serves it."""
    from runtime.served import remove_model
    from storage.store import open_store

    removed = remove_model(open_store(store), model, address)
    click.echo(f"Removed {removed.ref}")
