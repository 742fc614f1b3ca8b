"""`yanchat bench`: how many loops a second nodes close, how long each takes, and what that costs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import typer

from yanchat.cli.call import Call, flag
from yanchat.errors import UsageError

if TYPE_CHECKING:
    from yanchat.bench.figures import Figures
    from yanchat.bench.load import Plan
    from yanchat.bench.processes import Used
    from yanchat.config import Settings

BAR: Final = 40
NOT_ALL_CLOSED: Final = 1
NO_LIMITS: Final = {"messages_per_second": "0", "bytes_per_second": "0", "connections_per_address": "100000"}
"""Of throw-away nodes: what is measured is the node, not what it is told to allow."""


def bench(
    call: Call,
    url: Annotated[
        list[str] | None,
        typer.Option(metavar="ws://…", help="A running node, several times for several; else throw-away ones."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=16, metavar="N", help="So many throw-away nodes.")] = 1,
    pairs: Annotated[int, typer.Option(min=1, max=20_000, metavar="N", help="A sender and a recipient each.")] = 50,
    depth: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Messages under way in each pair.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="How long it is measured.")] = 10.0,
    size: Annotated[int, typer.Option(min=0, max=65_000, metavar="BYTES", help="Of each text.")] = 200,
    idle: Annotated[int, typer.Option(min=0, metavar="N", help="Further clients, who only are there.")] = 0,
    request_ids: Annotated[bool, flag("--request-ids", "Give each message a requestId.")] = False,
    token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="For running nodes that ask for one.", envvar="YANCHAT_TOKEN")
    ] = None,
) -> int:
    """Measure closed loops a second, against throw-away nodes or running ones.

    A loop is closed when the sender knows that the recipient has the message. Needs `pip install 'yanchat\\[bench]'`.
    Exit code 1 when anything went wrong.
    """
    try:
        import picows  # noqa: F401
    except ImportError:
        raise UsageError("The load generator is not installed: pip install 'yanchat[bench]'.") from None
    from yanchat.bench.load import Plan

    if url and nodes != 1:
        raise UsageError("Give --url for running nodes or --nodes for throw-away ones, not both.")
    settings, stay = call.settings(), bool(url)
    with ExitStack() as stack:
        seen: dict[str, int] = {"load": os.getpid()}
        if url:
            seen |= _processes_here(url, settings)
        else:
            from yanchat.cli.throwaway import throw_away

            started = stack.enter_context(throw_away(nodes, settings, NO_LIMITS))
            seen |= {urlsplit(one.url).netloc: one.pid for one in started}
            url = [one.url for one in started]
        plan = Plan(
            urls=url,
            pairs=pairs,
            depth=depth,
            seconds=seconds,
            warm_up=min(2.0, seconds / 4),
            size=size,
            request_ids=request_ids,
            idle=idle,
            token=token or "",
            tag=f"bench-{secrets.token_hex(4)}",
        )
        run = _run(call, plan, seen)
    report = _report(plan, run, settings)
    if call.out.form == "person":
        _tell(call, report, run.figures, stay)
    else:
        call.out.document(report, "")
    return NOT_ALL_CLOSED if report["errors"] or report["unfinished"] or not report["loops"] else 0


class Run(NamedTuple):
    figures: Figures
    spent: dict[str, Used]
    """Processor seconds in the measured time, and resident bytes at its end, of each process that could be seen."""
    pids: dict[str, int]


def _processes_here(urls: Sequence[str], settings: Settings) -> dict[str, int]:
    """The processes of those nodes that have their state on this machine."""
    from yanchat.bench.processes import behind
    from yanchat.config.load import state_directory
    from yanchat.directory import node_directory

    state = state_directory(settings, os.environ)
    names = [urlsplit(url).netloc for url in urls]
    found = {name: behind(node_directory(state, name) / "admin.sock") for name in names}
    return {name: pid for name, pid in found.items() if pid is not None}


def _run(call: Call, plan: Plan, seen: dict[str, int]) -> Run:
    import asyncio
    import resource

    from yanchat.bench import load
    from yanchat.bench.figures import Figures
    from yanchat.bench.processes import Used, used

    figures = Figures()
    at_begin: dict[str, Used] = {}
    spent: dict[str, Used] = {}

    def begun(what: str) -> None:
        for name, pid in seen.items():
            now = used(pid)
            if now is None:
                continue
            if what == "measuring":
                at_begin[name] = now
            elif name in at_begin:
                spent[name] = Used(now.processor - at_begin[name].processor, now.memory)

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with _Progress(call) as progress:
        asyncio.run(load.run(plan, figures, progress, begun))
    return Run(figures, spent, seen)


class _Progress:
    """A bar on a terminal, else nothing."""

    def __init__(self, call: Call) -> None:
        self._bar: Any = None
        self._phase = ""
        if call.out.on_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description:12}"),
                BarColumn(BAR),
                TextColumn("{task.fields[loops]:,} loops"),
                TimeElapsedColumn(),
                transient=True,
                console=call.out.lines,
            )

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, now: Any) -> None:
        if self._bar is None:
            return
        if now.phase != self._phase:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._phase = now.phase
            self._bar.add_task(now.phase, total=1.0, loops=0)
        self._bar.update(self._bar.task_ids[0], completed=now.done, loops=now.loops)


def _report(plan: Plan, run: Run, settings: Settings) -> dict[str, Any]:
    from yanchat import __version__, build
    from yanchat.bench.figures import percentile
    from yanchat.bench.processes import machine

    figures = run.figures
    ascending = sorted(figures.latencies)
    loops, took = len(ascending), figures.took or 1.0
    node_memory = [used.memory for name, used in run.spent.items() if name != "load"]
    return {
        "version": __version__,
        "build": build(),
        "profile": settings.node.profile,
        "nodes": len(plan.urls),
        "pairs": plan.pairs,
        "depth": plan.depth,
        "size": plan.size,
        "request_ids": plan.request_ids,
        "idle": plan.idle,
        "seconds": round(took, 3),
        "loops": loops,
        "loops_per_s": round(loops / took, 1),
        "frames_per_s": round(figures.frames / took, 1),
        "latency_ms": {
            "p50": _ms(percentile(ascending, 0.5)),
            "p90": _ms(percentile(ascending, 0.9)),
            "p99": _ms(percentile(ascending, 0.99)),
            "max": _ms(ascending[-1] if ascending else 0.0),
        },
        "errors": dict(figures.errors),
        "unfinished": figures.unfinished,
        "logins": figures.logins,
        "logins_per_s": round(figures.logins / (figures.login_took or 1.0), 1),
        "memory_bytes": sum(node_memory),
        "processes": [
            {
                "name": name,
                "pid": run.pids[name],
                "processor_s": round(used.processor, 3),
                "processor_us_per_loop": round(used.processor / loops * 1e6, 1) if loops else None,
                "memory_bytes": used.memory,
            }
            for name, used in run.spent.items()
        ],
        "machine": machine(),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _tell(call: Call, report: dict[str, Any], figures: Figures, stay: bool) -> None:
    from yanchat.bench.figures import histogram

    out, latency = call.out, report["latency_ms"]
    out.line(f"{report['loops_per_s']:,.0f} closed loops/s ({report['frames_per_s']:,.0f} frames/s)", "bold")
    out.line(
        f"{report['pairs']} pairs x {report['depth']}, {report['size']} bytes, {report['nodes']} node(s),"
        f" profile {report['profile']}, {report['seconds']:.1f} s, build {report['build']}"
    )
    out.line("latency  " + "  ".join(f"{name} {value:.2f} ms" for name, value in latency.items()))
    found = histogram(figures.latencies)
    most = max((bucket.times for bucket in found), default=1)
    for bucket in found:
        bar = "█" * round(bucket.times / most * BAR)
        out.line(f"  < {bucket.below * 1000:9.2f} ms  {bucket.times:9,}  {bar}")
    for process in report["processes"]:
        each = process["processor_us_per_loop"]
        out.line(
            f"{process['name']:22}  {process['processor_s'] / report['seconds']:5.0%} of a core"
            + ("" if each is None else f"  {each:7.1f} us a loop")
            + f"  {process['memory_bytes'] / 2**20:8.1f} MiB"
        )
    machine = report["machine"]
    out.line(
        f"{report['logins']:,} logins at {report['logins_per_s']:,.0f}/s; {machine['cores']} x {machine['processor']},"
        f" Python {machine['python']}, load {machine['load_average']}",
        "dim",
    )
    for sentence, times in report["errors"].items():
        out.line(f"{times:,} x {sentence}", "red")
    if report["unfinished"]:
        there = "; `yanchat outbox` shows them" if stay else ""
        out.line(f"{report['unfinished']:,} loops did not close in the time after{there}.", "red")
