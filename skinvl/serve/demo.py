"""`skinvl demo RUN`: a page that shows an image to a run and to its base; nothing of it leaves this machine."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skinvl.serve.page import Page, Session

PORTS = range(7860, 7960)
MOST = "32mb"  # of an image
# Gradio's own are too light for white words, or on a white ground.
DARK = {
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_text_color": "white",
    "input_placeholder_color": "*neutral_500",
}
WAITING = 16  # questions that may wait for the model; more are refused
HINT = "such as: What is the most likely diagnosis?"
HOUR = 3_600  # seconds after which an upload is removed, at the latest
# What the page needs of Gradio's routes. Of the others one fetches any address for its caller, and some tell the API.
ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static|svelte)/.*"
    r"|/gradio_api/(queue/(join|data)|run/predict|upload|upload_progress|startup-events|reset|cancel|heartbeat/\w+)/?"
    r"|/gradio_api/file=/.*"
)
# A browser then asks nobody else for anything, whatever an answer or Gradio itself may hold.
POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    b"frame-ancestors 'none'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class DemoError(ValueError):
    """A page that cannot be opened."""


def main(arguments: Sequence[str]) -> int:
    """0, once the page was ended by Ctrl-C or SIGTERM; what was uploaded is gone then.

    Raises:
        DemoError: Gradio is not installed, or the address cannot be had.
        DialogueError, ClassListError, RunError, BaseError: what a user can mend.
    """
    args = _arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else nothing would be removed
    with _bound(args.host, args.port) as bound, tempfile.TemporaryDirectory(prefix="skinvl-demo-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        with redirect_stdout(sys.stderr):
            app = _load(args)
        import uvicorn

        port = bound.getsockname()[1]
        print(f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{port}  (Ctrl-C ends)", flush=True)
        if not _loopback(args.host):
            print(
                f"--host {args.host}: ANYONE who can reach this machine over the network can open the page, upload "
                "images and use the model. There is no login, and nothing is encrypted.",
                file=sys.stderr,
            )
        settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        try:
            uvicorn.Server(settings).run(sockets=[bound])  # ends by the signal that ended it, once all is answered
        except KeyboardInterrupt:
            return 0
    return 0


def _load(args: argparse.Namespace) -> Any:
    """The ASGI application of the run that the words name, its model loaded."""
    try:
        import gradio  # noqa: F401 - before the weights are read, since it may not be there
    except ModuleNotFoundError as error:
        raise DemoError(f"the page needs Gradio ({error}); install it: pip install 'skinvl[demo]'") from error
    import torch

    from skinvl.model.loaded import load_model
    from skinvl.serve import class_list, dialogue
    from skinvl.serve.page import Page

    recipe, out = dialogue.resolve(args.run, args.overrides)
    loaded = load_model(recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    classes = None if args.labels is None else class_list.load(args.labels, out, loaded.facts)
    page = Page(loaded, classes, alone=args.no_base)
    return application(page, dialogue.caption(args.run, loaded), args.host)


def application(page: Page, run: str, host: str) -> Any:
    """The page as an ASGI application, behind a guard; uploads go to $GRADIO_TEMP_DIR."""
    import gradio as gr
    from fastapi import FastAPI

    blocks = layout(page, run)
    blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    fonts = ["system-ui", "sans-serif"]
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        "/",
        footer_links=[],
        run_history=False,  # else the browser would keep images and answers
        allowed_paths=[],
        show_error=True,
        max_file_size=MOST,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace"]).set(
            **DARK, **{f"{what}_dark": tone for what, tone in DARK.items() if what.startswith("button")}
        ),
        css_paths=[Path(__file__).with_name("demo.css")],
    )
    return Guard(app, None if not _loopback(host) else {"localhost", "127.0.0.1", "[::1]"})


def layout(page: Page, run: str) -> Any:
    """The gradio.Blocks of a page."""
    import gradio as gr

    from skinvl.serve.dialogue import NOTICE

    html = partial(gr.HTML, apply_default_css=False, js_on_load=None)
    title = f"skinvl: {run.partition(' · ')[0]}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, HOUR)) as blocks:
        html(f'<div class="notice" role="note">{NOTICE}</div>')
        html(page.head(run), elem_id="head")
        parts = PageParts(session=gr.State(None, time_to_live=HOUR))
        with gr.Row():
            with gr.Column(scale=2, min_width=280, elem_id="left"):
                parts.image = gr.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=300,
                    elem_id="image",
                )
                _keep_uploads_as_they_are(parts.image)
                if page.classes is not None:
                    with gr.Accordion("Class probabilities", elem_id="classes"):
                        question = page.classes.question or ""
                        parts.class_question = gr.Textbox(
                            question, label="Question for the classes", placeholder=HINT, lines=2
                        )
                        parts.classify = gr.Button("Weigh the classes")
                        parts.chances = html()
            with gr.Column(scale=5, min_width=280, elem_id="right"):
                parts.log = html(page.log(page.session()))
                parts.state = html(page.look(None))
                parts.question = gr.Textbox(label="Question", placeholder="Ask about the image", lines=1, max_lines=5)
                with gr.Row():
                    parts.ask = gr.Button("Ask", variant="primary", min_width=90)
                    parts.stop = gr.Button("Stop", interactive=False, min_width=90)
                    parts.new = gr.Button("New conversation", min_width=190)
        _wire(page, parts)
    return blocks


@dataclass(slots=True)
class PageParts:
    """The components of a page, by what they are for."""

    session: Any
    image: Any = None
    class_question: Any = None
    classify: Any = None
    chances: Any = None
    log: Any = None
    state: Any = None
    question: Any = None
    ask: Any = None
    stop: Any = None
    new: Any = None


def _wire(page: Page, parts: PageParts) -> None:
    """Has the components do what the page can. One request at a time reaches the model, the others wait."""
    import gradio as gr

    from skinvl.serve.page import state

    def begin(session: Session | None) -> list[Any]:
        session = session or page.session()
        session.stopped = False
        return [session, state("Waiting for the model …"), *switched(busy=True)]

    def switched(busy: bool) -> list[Any]:
        return [gr.update(interactive=wanted) for wanted in (not busy, busy, not busy)]

    def anew(image: str | None) -> list[Any]:
        return [None, page.log(page.session()), page.look(image)]

    buttons = [parts.ask, parts.stop, parts.new]
    quick: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    model["show_progress"] = "minimal"

    # A question: the buttons change at once, the answer comes piece by piece, and then they change back.
    chain = gr.on(
        [parts.ask.click, parts.question.submit], begin, parts.session, [parts.session, parts.state, *buttons], **quick
    )
    chain = chain.then(page.answer, [parts.session, parts.question, parts.image], [parts.log, parts.state], **model)
    chain.then(lambda: ["", *switched(busy=False)], None, [parts.question, *buttons], **quick)

    # Stop does not queue, or it would wait for what it stops.
    parts.stop.click(lambda session: session and session.stop(), parts.session, None, **quick)
    gr.on(
        [parts.new.click, parts.image.upload, parts.image.clear],
        anew,
        parts.image,
        [parts.session, parts.log, parts.state],
        **quick,
    )
    if parts.classify is not None:
        parts.classify.click(
            page.probabilities, [parts.class_question, parts.image], [parts.chances, parts.state], **model
        )


def _keep_uploads_as_they_are(image: Any) -> None:
    """Has the component give the path of an uploaded file, unopened and unconverted, and fetch no address."""
    kept = image.async_move_resource_to_block_cache

    async def here(path: str | Path | None) -> str | None:
        if path is not None and re.match(r"\w+://", str(path)):
            raise ValueError("an address, where an uploaded file was expected")
        moved: str | None = await kept(path)
        return moved

    image.async_move_resource_to_block_cache = here
    image.preprocess = lambda payload: payload and payload.path


class Guard:
    """The page's routes and no others, to the page alone, with headers that keep a browser from asking elsewhere.

    Args:
        hosts: by which names the page may be called; None for any. A name that an outside page made point here is
            none of them.
    """

    def __init__(self, app: Any, hosts: set[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """As ASGI has it."""
        refused = self._refused(scope)
        if refused is None:
            await self.app(scope, receive, partial(_sent, send))
            return
        status, why = refused
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(why))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": why})

    def _refused(self, scope: dict[str, Any]) -> tuple[int, bytes] | None:
        if scope["type"] != "http":
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and re.sub(r":\d+$", "", host) not in self.hosts:
            return 400, b"not a name of this page"
        if origin is not None and origin.partition("://")[2] != host:
            return 403, b"asked by another page"
        return None if ROUTES.fullmatch(scope["path"]) else (404, b"not found")


async def _sent(send: Any, message: dict[str, Any]) -> None:
    if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], *HEADERS]}
    await send(message)


def _loopback(host: str) -> bool:
    return host == "localhost" or ip_address(host).is_loopback


def _bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens there: at the first free port of PORTS where none is given.

    Raises:
        DemoError: no such address here, or the port is taken.
    """
    if host != "localhost":
        try:
            ip_address(host)
        except ValueError as error:
            raise DemoError(f"--host {host}: expected localhost or an IP address of this machine") from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failed: OSError | None = None
    for candidate in PORTS if port is None else [port]:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, candidate))
            bound.listen()  # or a second page could take the same port while this one's weights are read
            return bound
        except (OSError, OverflowError) as error:
            bound.close()
            failed = error if isinstance(error, OSError) else OSError(str(error))
    tried = f"ports {PORTS.start} to {PORTS.stop - 1}" if port is None else f"port {port}"
    raise DemoError(f"{host}, {tried}: cannot be used ({failed}); choose another with --port") from failed


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="skinvl demo",
        description="Open a page on which a run and its base are asked about images. It is on this machine alone "
        "unless --host says otherwise, and keeps nothing.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, its merged/, or the name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="evaluate.… or attention")
    parser.add_argument(
        "--labels",
        metavar="SET",
        help="show class probabilities: a set the run classified, a benchmark, or a text file",
    )
    parser.add_argument("--no-base", action="store_true", help="show the adapter's answers alone, in half the time")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the network in")
    parser.add_argument("--port", type=int, help=f"default: the first free one from {PORTS.start}")
    return parser.parse_intermixed_args(arguments)
