"""`skinvl synth`: a prepared source and a model behind an OpenAI-compatible server → another prepared source."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from skinvl.data.source import read_images, source_folder
from skinvl.recipe.printing import entry
from skinvl.sources.asking import journal
from skinvl.sources.asking.budget import Budget
from skinvl.sources.asking.endpoint import Endpoint, Settings, key
from skinvl.sources.asking.inquiry import ask_all
from skinvl.sources.asking.journal import Journal
from skinvl.sources.asking.outcomes import Outcomes
from skinvl.sources.asking.payload import Payloads
from skinvl.sources.asking.progress import AskingProgress
from skinvl.sources.asking.request import Request
from skinvl.sources.reading import embedding, screening
from skinvl.sources.synthesis import output, programme, review, tally
from skinvl.sources.synthesis.job import RequestAccount, SynthesisError, SynthesisJob, refuse
from skinvl.sources.synthesis.units import Share, total

STOPPED = 1  # exit code where requests are left, as a message says


def main(words: Sequence[str]) -> int:
    """0, once OUT is made, this shard is done, or what was asked for is shown; 1 where it stopped before.

    Raises:
        SynthesisError, UnitsError, RecipeError, FileNotFoundError: programme, source or OUT do not allow it.
        EndpointError, BudgetError, JournalError: see `inquiry.ask_all`; what was answered is in the journal.
    """
    args = _arguments(words)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.list:
        _programmes(console)
        return 0
    source = source_folder(args.source)
    job = _job(args, source)
    if args.review:
        console.print(f"{review.write(job.out, source, args.seed)}: open it in a browser")
        return 0
    refuse(source, job.out)
    if args.dry_run:
        _show(console, job, tally.tally(job))
        return 0
    if job.programme.unit == "image":
        read_images(source)  # what misses is said before anything is paid for
    job.journals.mkdir(parents=True, exist_ok=True)
    if not args.assemble and (stop := _ask(args, job, console)):
        print(stop, file=sys.stderr)
        return STOPPED
    return _make(args, job, console)


def _job(args: argparse.Namespace, source: Path) -> SynthesisJob:
    index, count = args.shard or (0, 1)
    warmth = "of the server" if args.temperature is None else f"{args.temperature:g}"
    settings = [f"{args.max_tokens} tokens", f"temperature {warmth}"]
    chosen = programme.load(args.programme)
    if chosen.unit == "image":
        settings.insert(0, f"{args.image_size} px")
    share = Share(tuple(args.split), args.limit, args.count, index, count)
    return SynthesisJob(
        chosen, source, args.out, share, args.seed, args.model or "", ", ".join(settings), args.terms,
        args.verify_model,
    )  # fmt: skip


def _ask(args: argparse.Namespace, job: SynthesisJob, console: Console) -> str:
    """Why it stopped before all requests of the share had an outcome; empty where it did not."""
    units = total(job.programme, job.source, job.share)
    expected = units * len(job.programme.slots) // job.share.of
    console.print(
        f"{job.programme.name} on {units:,} {job.programme.unit}s, by {job.model}: at most {expected:,} requests"
    )
    asked = (request for _, requests in job.requests() for request in requests)
    stop = asyncio.run(_asked(args, job, asked, expected, console))
    if stop or job.verifier is None:
        return stop

    # What the second model is asked depends on what the first one answered.
    console.print(f"{job.verifier} checks what was answered")
    with Outcomes(job.out, journal.read(job.journals)) as outcomes:
        return asyncio.run(_asked(args, job, output.checks(job, outcomes), None, console, check=True))


async def _asked(
    args: argparse.Namespace,
    job: SynthesisJob,
    requests: Iterator[Request],
    expected: int | None,
    console: Console,
    check: bool = False,
) -> str:
    """Why it stopped before all these requests had an outcome; empty where it did not."""
    addresses, name, model = args.endpoint, args.key_env, job.model
    if check:
        addresses, name, model = args.verify_endpoint or addresses, args.verify_key_env or name, args.verify_model

    settings = Settings(model, args.max_tokens, args.temperature, args.timeout)
    budget = Budget(args.max_requests, args.max_spent, args.max_cost, args.prompt_price, args.completion_price)
    endpoints = [Endpoint(address, settings, key(address, name)) for address in addresses]
    try:
        with (
            Journal(job.journal) as file,
            Payloads(job.source, args.image_size) as payloads,
            AskingProgress(console, expected, budget) as progress,
        ):
            counts = await ask_all(
                requests, endpoints, file, payloads, concurrency=args.concurrency, budget=budget,
                check=screening.fault, seed=args.seed, say=progress.say,
            )  # fmt: skip
    finally:
        for endpoint in endpoints:
            await endpoint.close()
    return counts.stop


def _make(args: argparse.Namespace, job: SynthesisJob, console: Console) -> int:
    with Outcomes(job.out, journal.read(job.journals)) as outcomes:
        if args.shard and not args.assemble and (left := output.unanswered(job, outcomes)):
            console.print(
                f"this shard is done; {left:,} requests of others have no outcome yet, and the last joins all"
            )
            return 0
        embed = None
        if args.embedding_model:
            if not args.endpoint:
                raise SynthesisError("--embedding-model: say with --endpoint who has it")
            embed = embedding.Vectors(job.journals, args.embedding_model, args.endpoint[0], args.key_env, console.print)
        with console.status(f"making {job.out} of {len(outcomes):,} outcomes"):
            account = output.assemble(job, outcomes, embed)
    _report(console, job, account)
    return 0


def _report(console: Console, job: SynthesisJob, account: RequestAccount) -> None:
    kept, dropped = account.examples.total(), account.ledger.total()
    console.print(f"{account.requests:,} requests gave {account.rows:,} rows = Examples {kept:,} + ledger {dropped:,}")
    table = Table(box=None, show_header=False)
    for split, count in sorted(account.examples.items()):
        table.add_row(f"Examples in {split}", f"{count:,}")
    for kind, count in account.kinds.most_common():
        table.add_row(f"kind: {kind}", f"{count:,}")
    table.add_row("images", f"{account.images:,}")
    if account.silent:
        table.add_row(f"{job.programme.unit}s that no prompt fits, not asked about", f"{account.silent:,}")
    for rule, count in account.ledger.most_common():
        table.add_row(f"ledger: {rule}", f"{count:,}")
    for tag, count in account.tags.most_common():
        table.add_row(f"kept, tagged: {tag}", f"{count:,}")
    for word, count in account.verdicts.most_common():
        table.add_row(f"second model: {word}", f"{count:,}")
    console.print(table)
    hint = "" if kept else "; no Example is left (ledger.jsonl says why)"
    console.print(f"{job.out}: made{hint}. To look at it: skinvl synth {job.source} {job.out} --review")
    if job.terms is None:
        console.print("the model's terms are not stated (--terms): see what they let you do with what it wrote")


def _show(console: Console, job: SynthesisJob, counts: tally.Tally) -> None:
    share = f", shard {job.share.index} of {job.share.of}" if job.share.of > 1 else ""
    console.print(
        f"{job.programme.name} on {counts.units:,} {job.programme.unit}s{share}: {counts.requests:,} requests"
    )
    console.print(counts.table(), soft_wrap=False)
    if counts.silent:
        console.print(
            f"{counts.silent:,} {job.programme.unit}s are not asked about: no prompt fits what is known of them"
        )


def _programmes(console: Console) -> None:
    for shipped in map(programme.load, programme.programmes()):
        prompts = [prompt for slot in shipped.slots for prompt in slot.prompts]
        kinds = dict.fromkeys(prompt.kind for prompt in prompts)
        entry(console, f"{shipped.name}: about {shipped.unit}s, {len(prompts)} prompts of the kinds", ", ".join(kinds))


def _shard(text: str) -> tuple[int, int]:
    share = re.fullmatch(r"(\d+)/(\d+)", text)
    if not share or int(share[1]) >= int(share[2]):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N with I from 0 to N - 1, such as 0/8")
    return int(share[1]), int(share[2])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number above 0")
    return int(text)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="skinvl synth", description="Have a model ask and answer questions about a prepared source.",
    )  # fmt: skip
    parser.add_argument("source", nargs="?", metavar="SOURCE",
                        help="a prepared source; a name without a slash lies in data/")  # fmt: skip
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder for the source that is made")
    parser.add_argument("--programme", default="dermasynth", metavar="NAME",
                        help="a name of --list, or a YAML file (default dermasynth)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="the programmes")
    what = parser.add_argument_group("what is asked about")
    what.add_argument("--split", action="append", default=[], metavar="NAME",
                      help="only images of this split; may be repeated (default: all)")  # fmt: skip
    what.add_argument("--limit", type=_count, metavar="N", help="only N images, a fixed sample of all")
    what.add_argument("--count", type=_count, default=0, metavar="N", help="how many times tasks are asked for")
    what.add_argument("--seed", type=int, default=0, help="of the draws of prompts (default 0)")
    what.add_argument("--shard", type=_shard, metavar="I/N",
                      help="one share, I from 0; whoever ends last joins the shares")  # fmt: skip
    who = parser.add_argument_group("who is asked")
    who.add_argument("--model", metavar="NAME", help="as the server calls it")
    who.add_argument("--endpoint", action="append", default=[], metavar="ADDRESS",
                     help="an OpenAI-compatible server, as http://127.0.0.1:8000/v1; may be repeated")  # fmt: skip
    who.add_argument("--key-env", metavar="NAME", help="environment variable that holds the key "
                     "(default OPENAI_API_KEY, for Gemini GEMINI_API_KEY; none over plain http)")  # fmt: skip
    who.add_argument("--terms", metavar="TEXT", help="under which the model gives what it writes, such as Apache-2.0")
    who.add_argument("--concurrency", type=_count, default=16, metavar="N", help="requests at once (default 16)")
    who.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS",
                     help="for a whole reply (default 300)")  # fmt: skip
    who.add_argument("--image-size", type=_count, default=768, metavar="PIXELS",
                     help="longest side of what is sent (default 768)")  # fmt: skip
    who.add_argument("--max-tokens", type=_count, default=1024, metavar="N", help="of a reply (default 1024)")
    who.add_argument("--temperature", type=float, metavar="T", help="(default: the server's own)")
    who.add_argument("--verify-model", metavar="NAME", help="a second model that checks every pair")
    who.add_argument("--verify-endpoint", action="append", default=[], metavar="ADDRESS", help="(default: --endpoint)")
    who.add_argument("--verify-key-env", metavar="NAME", help="(default: --key-env)")
    who.add_argument("--embedding-model", metavar="NAME",
                     help="for near-duplicates among tasks (default: compare how they are spelt)")  # fmt: skip
    limit = parser.add_argument_group("budget, of one shard in all its runs")
    limit.add_argument("--max-requests", type=_count, metavar="N")
    limit.add_argument("--max-spent", type=_count, metavar="TOKENS", help="tokens, read and written")
    limit.add_argument("--max-cost", type=float, metavar="MONEY", help="in the currency of the prices")
    limit.add_argument("--prompt-price", type=float, default=0.0, metavar="MONEY",
                       help="of a million tokens read; of two models, the dearer one's")  # fmt: skip
    limit.add_argument("--completion-price", type=float, default=0.0, metavar="MONEY",
                       help="of a million tokens written, likewise")  # fmt: skip
    also = parser.add_argument_group("instead of asking")
    also.add_argument("--dry-run", action="store_true", help="count what would be asked")
    also.add_argument("--assemble", action="store_true", help="make OUT of what is answered so far")
    also.add_argument("--review", action="store_true", help="write OUT/review.html, a sample to judge by eye")
    args = parser.parse_args(list(words))
    if not args.list and args.out is None:
        parser.error("SOURCE and OUT are needed (or --list)")
    asks = not (args.list or args.dry_run or args.review)
    if asks and not args.model:
        parser.error("--model: say which model is asked, as its server calls it; what was answered is found by it too")
    if asks and not args.assemble and not args.endpoint:
        parser.error("--endpoint: say where the model is, such as http://127.0.0.1:8000/v1 (or add --dry-run)")
    return args
