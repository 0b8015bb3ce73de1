"""The page of skinvl demo: what it says of a run and its base, what it refuses, and that it asks nobody else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_dialogue

from helpers import tiny
from skinvl.model.loaded import LoadedModel, load_model
from skinvl.recipe.recipe import Generation
from skinvl.serve import demo, dialogue
from skinvl.serve.class_list import ClassList
from skinvl.serve.demo import DemoError, Guard
from skinvl.serve.page import Page, Session

ROOT = Path(__file__).parents[2]
COLOURS = ClassList("colours", ("red", "<b>brown</b>"), "Which colour?", 2.0, 1.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run lies as runs/one, and images."""
    from helpers import runs

    folder = tmp_path_factory.mktemp("shown")
    test_dialogue.finished(folder, runs.make(folder, "qwen2_vl", evaluate__generation={"max_new_tokens": 6}))
    tiny.picture(3).save(folder / "lesion.png")
    (folder / "words.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def asked(made: Path) -> LoadedModel:
    found, _ = dialogue.resolve(str(made / "runs" / "one"), [])
    return load_model(found, test_dialogue.CPU)


def ended(page: Page, session: Session, question: str, image: Path | None) -> tuple[str, str]:
    """The last of what the page showed."""
    *_, last = page.answer(session, question, None if image is None else str(image))
    return last


def test_both_sides_answer_as_they_do_alone(asked: LoadedModel, made: Path) -> None:
    page = Page(asked)
    session = page.session()
    alone = [dialogue.Dialogue(asked, session.dialogues[0].generation, base=base) for base in (False, True)]
    for number, question in enumerate(("What is <i>it</i>?", "How many?")):
        log, state = ended(page, session, question, made / "lesion.png")
        for side, one in enumerate(alone):
            said = test_dialogue.say(one, question, *([] if number else [made / "lesion.png"]))
            assert session.turns[number].answers[side] == dialogue.readable(said).strip()
        assert 'role="status"' in state
        assert 'aria-busy="false"' in log
    assert log.count('<div class="turn">') == 2
    assert "What is &lt;i&gt;it&lt;/i&gt;?" in log
    assert "<i>" not in log
    assert "6 tokens" in log
    assert [len(one.images) for one in session.dialogues] == [1, 1]
    first, *_ = page.answer(session, "And?", str(made / "lesion.png"))
    assert "reading …" in first[0]
    assert "waiting …" in first[0]


def test_which_sides_there_are(asked: LoadedModel) -> None:
    assert [kind for _, kind in Page(asked).sides] == ["adapter", "base"]
    assert [kind for _, kind in Page(asked, alone=True).sides] == ["adapter"]
    none = replace(asked, facts={**asked.facts, "adapter": None})
    assert Page(none).sides == [("Answer", "base")]
    lora = {**asked.recipe.lora, "init_lora_weights": "pissa"}
    changed = Page(replace(asked, recipe=asked.recipe.model_copy(update={"lora": lora})))
    assert [kind for _, kind in changed.sides] == ["adapter"]
    assert "PiSSA has changed its weights" in changed.head("a · b")


def test_errors_are_one_sentence_and_leave_the_conversation(asked: LoadedModel, made: Path) -> None:
    page = Page(asked)
    session = page.session()
    ended(page, session, "What is it?", made / "lesion.png")
    before = page.log(session)
    _, state = ended(page, session, " ", made / "lesion.png")
    assert "Type a question first." in state
    log, state = ended(page, session, "<|im_end|>", made / "lesion.png")
    assert log == before
    assert 'role="alert">&lt;|im_end|&gt; in the text of a user turn.' in state
    assert [len(one.messages) for one in session.dialogues] == [2, 2]
    with pytest.MonkeyPatch.context() as patched:  # the adapter answers, and then the base cannot

        def failing(*_: Any) -> Iterator[str]:
            raise dialogue.DialogueError("no memory is left")

        patched.setattr(session.dialogues[1], "ask", failing)
        log, state = ended(page, session, "How many?", made / "lesion.png")
    assert log == before
    assert "No memory is left." in state
    assert [len(one.messages) for one in session.dialogues] == [2, 2]
    _, state = ended(page, page.session(), "What is it?", made / "words.png")
    assert "The image: no image that can be read; expected one of JPEG" in state
    assert str(made) not in state
    assert page.look(str(made / "words.png")) == state
    assert "Image of 112 × 112 pixels." in page.look(str(made / "lesion.png"))
    assert "too long" in ended(page, session, "word " * 9000, made / "lesion.png")[1]


def test_stop_ends_both_sides(asked: LoadedModel, made: Path) -> None:
    page = Page(asked)
    session = page.session()
    for one in session.dialogues:
        one.generation = Generation(max_new_tokens=60)
    for _ in page.answer(session, "What is it?", str(made / "lesion.png")):
        session.stop()
    assert session.turns[0].notes[1] == "stopped"
    assert [len(one.messages) for one in session.dialogues] in ([2, 0], [0, 0])
    assert "<small>stopped</small>" in page.log(session)


def test_one_conversation_s_keys_and_values_are_kept(asked: LoadedModel, made: Path) -> None:
    page = Page(asked)
    one, other = page.session(), page.session()
    ended(page, one, "What is it?", made / "lesion.png")
    assert all(side._kept is not None for side in one.dialogues)
    ended(page, other, "What is it?", made / "lesion.png")
    assert all(side._kept is None for side in one.dialogues)
    ended(page, one, "How many?", made / "lesion.png")
    assert one.turns[1].answers == other.turns[0].answers or len(one.dialogues[0].messages) == 4


def test_classes_are_ranked_and_say_what_they_are_worth(asked: LoadedModel, made: Path) -> None:
    page = Page(asked, COLOURS)
    shown, state = page.probabilities("Which colour?", str(made / "lesion.png"))
    assert "alert" not in state
    scores = dialogue.likelihoods(asked, [made / "lesion.png"], "Which colour?", COLOURS.names)
    likeliest = "red" if scores[0] > scores[1] else "&lt;b&gt;brown&lt;/b&gt;"
    assert shown.index(likeliest) < shown.index("red" if likeliest != "red" else "&lt;b&gt;")
    assert "Calibrated on validation images of colours (temperature 2.00)." in shown
    assert "below the threshold of 1.01" in shown
    assert "The base is not calibrated." in shown
    assert "Not calibrated (its temperature" in page.probabilities("What colour?", str(made / "lesion.png"))[0]
    assert page.probabilities("Which colour?", None)[1].count("Choose an image first.") == 1
    assert "Type a question" in page.probabilities(" ", str(made / "lesion.png"))[1]
    assert "The image: no image that can be read" in page.probabilities("Which?", str(made / "words.png"))[1]


def test_addresses() -> None:
    assert [demo._loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1")] == [
        *(True, True, True, False, False),
    ]
    with demo._bound("127.0.0.1", None) as first, demo._bound("127.0.0.1", None) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
        assert ports[0] != ports[1]
        assert set(ports) <= set(demo.PORTS)
        with pytest.raises(DemoError, match=rf"port {ports[0]}: cannot be used .*--port"):
            demo._bound("127.0.0.1", ports[0])
    for port in (-1, 70_000):
        with pytest.raises(DemoError, match="cannot be used"):
            demo._bound("127.0.0.1", port)
    with pytest.raises(DemoError, match="expected localhost or an IP address"):
        demo._bound("example.com", None)


@pytest.fixture(scope="module")
def client(asked: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patched.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        app = demo.application(Page(asked, COLOURS), "runs/one · facts", "127.0.0.1")
        with TestClient(app, base_url="http://127.0.0.1:7860") as found:
            yield found


def test_the_page_gives_its_own_files_and_no_others(client: Any, made: Path) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert dialogue.NOTICE in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert all(one["api_visibility"] == "private" for one in config["dependencies"])
    for path in (
        "/etc/passwd",
        str(made / "lesion.png"),
        "../../../../etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
    ):
        found = client.get(f"/gradio_api/file={path}")
        assert found.status_code in (403, 404), path
        assert "root:" not in found.text
    closed = ("docs", "openapi.json", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/runs", "monitoring")
    closed += ("gradio_api/file=http://127.0.0.1:9/x", "gradio_api/proxy=http://127.0.0.1:9/x", "gradio_api/call/a")
    for path in closed:
        assert client.get(f"/{path}").status_code == 404, path
    with (made / "lesion.png").open("rb") as file:
        (uploaded,) = client.post("/gradio_api/upload", files={"files": ("lesion.png", file)}).json()
    assert uploaded.startswith(os.environ["GRADIO_TEMP_DIR"])
    assert client.get(f"/gradio_api/file={uploaded}").content == (made / "lesion.png").read_bytes()
    huge = client.post("/gradio_api/upload", files={"files": ("huge.png", b"0" * (33 << 20))})
    assert huge.status_code == 413


def test_other_pages_and_other_names_are_refused(client: Any) -> None:
    assert client.get("/config", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/config", headers={"host": "localhost:7860"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert client.post("/gradio_api/queue/join", headers={"origin": origin}, json={}).status_code == 403
    assert client.get("/config", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200
    assert Guard(None, None)._refused({"type": "http", "path": "/", "headers": [(b"host", b"any.example")]}) is None


def test_an_address_in_place_of_an_upload_is_not_fetched(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words) or [])
    config = client.get("/config").json()
    names = {one["id"]: one["type"] for one in config["components"]}
    (look,) = [one for one in config["dependencies"] if [names[place] for place in one["inputs"]] == ["image"]]
    image = {"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": look["id"], "data": [image], "session_hash": "a"}
    found = client.post("/gradio_api/run/predict", json=body)
    assert found.status_code == 500
    assert asked == []


# In a browser


@pytest.fixture(scope="module")
def served(made: Path) -> Iterator[str]:
    """The address of `skinvl demo runs/one`, whose uploads are gone once SIGTERM ended it."""
    import threading

    colours = made / "colours.txt"
    colours.write_text("red\nbrown\n")
    temporary = made / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "skinvl", "demo", "runs/one", "--labels", "colours.txt"]
    command.append("evaluate.generation.max_new_tokens=60")
    page = subprocess.Popen(
        command, cwd=made, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert page.stdout is not None
    line = page.stdout.readline()
    threading.Thread(target=page.stdout.read, daemon=True).start()
    try:
        assert line.endswith("(Ctrl-C ends)\n")
        yield line.split()[0]
    finally:
        page.send_signal(signal.SIGTERM)
        assert page.wait(30) == 0
    assert not list(temporary.glob("skinvl-demo-*"))


def browser(width: int, dark: bool = False) -> Any:
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.fail(f"{' and '.join(missing)} not found; install them: apt-get install chromium chromium-driver")
    os.environ["SE_OFFLINE"] = "true"  # selenium would fetch a driver of its own
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(found["chromium"])
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=Service(executable_path=str(found["chromedriver"])), options=options)
    window = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    return driver


def wait(driver: Any, script: str) -> Any:
    """What the script returns, once that is true."""
    deadline = time.monotonic() + 60
    while not (found := driver.execute_script(f"return {script}")):
        assert time.monotonic() < deadline, (script, driver.execute_script("return document.body.innerText"))
        time.sleep(0.1)
    return found


READY = "[...document.querySelectorAll('button')].some(one => one.innerText === 'Ask' && !one.disabled)"


def ask(driver: Any, question: str, turns: int) -> list[str]:
    """The answers to a question, which is asked by keyboard."""
    from selenium.webdriver.common.keys import Keys

    driver.find_element("css selector", "textarea[placeholder='Ask about the image']").send_keys(question, Keys.ENTER)
    wait(driver, f"document.querySelectorAll('.turn').length === {turns} && {READY}")
    wait(driver, "document.querySelector('textarea[placeholder=\"Ask about the image\"]').value === ''")
    cards = driver.find_elements("css selector", ".turn:last-child .said")
    return [card.text for card in cards]


@pytest.mark.slow
def test_in_a_browser_an_image_is_asked_about_and_nothing_is_asked_elsewhere(
    served: str, made: Path, asked: LoadedModel
) -> None:
    driver = browser(1280)
    try:
        driver.get(served)
        wait(driver, READY)
        upload = driver.find_element("css selector", "input[type=file]")
        upload.send_keys(str(made / "words.png"))
        wait(driver, "document.querySelector('.state').innerText.startsWith('The image: no image that can be read')")
        driver.find_element("css selector", "button[aria-label='Remove Image'], button[aria-label='Clear']").click()
        wait(driver, "document.querySelector('.state').innerText === ''")
        driver.find_element("css selector", "input[type=file]").send_keys(str(made / "lesion.png"))
        wait(driver, "document.querySelector('.state').innerText.startsWith('Image of 112')")
        assert list((made / "tmp").glob("skinvl-demo-*/*/lesion.png"))  # and nowhere else
        settings = Generation(max_new_tokens=60)
        alone = [dialogue.Dialogue(asked, settings, base=base) for base in (False, True)]
        for number, question in enumerate(("What is it?", "How many <b>?")):
            found = ask(driver, question, number + 1)
            said = [test_dialogue.say(one, question, *([] if number else [made / "lesion.png"])) for one in alone]
            assert [" ".join(one.split()) for one in found] == [
                " ".join(dialogue.readable(one).split()) or "no words" for one in said
            ]
        assert ask(driver, "<|im_end|>", 2) == found
        assert "in the text of a user turn" in driver.find_element("css selector", ".state.wrong").text
        driver.find_element("xpath", "//button[normalize-space()='Weigh the classes']").click()
        wait(driver, "document.querySelectorAll('.chances tbody tr').length === 2")
        assert "Not calibrated" in driver.find_element("css selector", ".chances p").text
        shares = [one.text for one in driver.find_elements("css selector", ".chances td.adapter")]
        assert sum(float(one.removesuffix(" %")) for one in shares) == pytest.approx(100, abs=0.2)
        driver.find_element("xpath", "//button[normalize-space()='New conversation']").click()
        wait(driver, "document.querySelectorAll('.turn').length === 0")
        assert driver.find_element("css selector", ".notice").is_displayed()
        assert [one for one in driver.get_log("browser") if one["level"] == "SEVERE"] == []
        messages = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
        wanted = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        assert len(wanted) > 20
        assert [url for url in wanted if not url.startswith((served, "data:", "blob:"))] == []
    finally:
        driver.quit()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_in_a_browser_it_fits_and_can_be_used_by_keyboard(served: str, made: Path, width: int, dark: bool) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = browser(width, dark)
    try:
        driver.get(served)
        wait(driver, READY)
        driver.find_element("css selector", "input[type=file]").send_keys(str(made / "lesion.png"))
        wait(driver, "document.querySelector('.state').innerText.startsWith('Image of 112')")
        assert len(ask(driver, "What-" * 60, 1)) == 2
        wide = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        assert driver.execute_script(f"return {wide}") <= width
        reached = []
        for _ in range(30):
            driver.switch_to.active_element.send_keys(Keys.TAB)
            there = driver.switch_to.active_element
            reached.append(there.text or there.get_attribute("aria-label") or there.get_attribute("placeholder"))
        for name in ("Weigh the classes", "Ask", "New conversation", "Ask about the image"):
            assert name in reached, reached
        unnamed = """[...document.querySelectorAll('button, input, textarea')].filter(one =>
            !(one.innerText || one.ariaLabel || one.title || (one.labels && one.labels.length)))"""
        assert driver.execute_script(f"return {unnamed}.map(one => one.outerHTML)") == []
        back = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(","))) < 200) == dark
    finally:
        driver.quit()


@pytest.mark.slow
def test_in_a_browser_a_second_one_waits_and_stop_stops(served: str, made: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    one, other = browser(900), browser(900)
    try:
        for driver in (one, other):
            driver.get(served)
            wait(driver, READY)
            driver.find_element("css selector", "textarea[placeholder='Ask about the image']").send_keys(
                "How many?", Keys.ENTER
            )
        for driver in (one, other):
            wait(driver, f"document.querySelectorAll('.turn').length === 1 && {READY}")
        said = [[card.text for card in driver.find_elements("css selector", ".said")] for driver in (one, other)]
        assert said[0] == said[1]
        one.execute_script(
            "setInterval(() => [...document.querySelectorAll('button')]"
            ".filter(one => one.innerText === 'Stop' && !one.disabled).map(one => one.click()), 10)"
        )
        ask(one, "And which colour?", 2)
        notes = [note.text for note in one.find_elements("css selector", ".turn:last-child small")]
        assert notes[1].endswith("stopped"), notes
        assert one.find_element("css selector", ".state").text == "Stopped."
    finally:
        one.quit()
        other.quit()
