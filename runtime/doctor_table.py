"""The tables of ``tandem doctor``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.doctor import Report, size


def print_report(report: Report) -> None:
    """Print the report as tables, problems last."""
    console = Console()
    console.print(_environment_table(report))
    console.print(_machine_table(report))
    for kind, colour, lines in (("Warning", "yellow", report.warnings), ("Problem", "red", report.problems)):
        for line in lines:
            console.print(Text(f"{kind}:", style=colour), Text(line), soft_wrap=True)
    if not report.problems:
        console.print("[green]Everything needed works.[/]")


def _environment_table(report: Report) -> Table:
    table = Table(title="Environments", title_justify="left")
    for heading in ("name", "flavour", "Python", "Ray", "engines", "imports"):
        table.add_column(heading)
    for item in report.environments:
        engines = "\n".join(f"{name} {version}" for name, version in item.engines.items())
        imports = "[red]no[/]" if item.problem else f"[green]yes[/] ({item.import_s} s)"
        cells = (item.name, item.flavour, item.python, item.ray, engines, imports)
        table.add_row(*(cell or "-" for cell in cells))
    return table


def _machine_table(report: Report) -> Table:
    table = Table(title="Machine and cluster", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("Ray address", report.ray_address or "no local cluster runs (start one with: tandem up)")
    if report.dashboard_url:
        table.add_row("Ray dashboard", report.dashboard_url)
    for item in report.environments:
        if item.interpreter:
            table.add_row(f"{item.name} interpreter", item.interpreter)
    shown = [f"{gpu.name}: {size(gpu.free_bytes)} of {size(gpu.memory_bytes)} free" for gpu in report.gpus]
    table.add_row("GPUs", "\n".join(shown) or "none")
    for name, disk in report.disks.items():
        table.add_row(f"Free in the {name}", f"{size(disk['free_bytes'])} ({disk['path']})")
    table.add_row("/dev/shm", size(report.shm_bytes))
    table.add_row("Open-file limit", str(report.open_files))
    return table
