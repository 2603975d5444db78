"""`make lab`: the real server, notebooks run through its kernel protocol, and the explorers moved by messages."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import nbformat
import pytest
import websocket

from histoclip_lib.common.html import EXPLORER_TYPE
from histoclip_lib.report.export import WIDGET

ROOT = Path(__file__).parents[1]
TOKEN = uuid4().hex
SMALL = {"name": "lab", "n_patches": 60, "views": 1, "resamples": 50, "examples": 2, "wordings": 1, "folds": 3}
LONGEST_WAIT = 300  # seconds

pytestmark = pytest.mark.slow


@dataclass
class Lab:
    """A running server, and requests to it."""

    address: str
    folder: Path

    def ask(self, path, method="GET", body=None):
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read().decode()

    def json(self, *arguments, **options):
        return json.loads(self.ask(*arguments, **options))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, new_cache):
    """What `make lab` starts, in a copy of the repository's notebooks and with folders of its own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("notebooks", "params", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", "lab", f"BIN={Path(sys.executable).parent}", "READY=params"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *_, trust, command = dry.stdout.strip().splitlines()
    own = tmp_path_factory.mktemp("own")
    environment = os.environ | {
        "JUPYTER_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "HISTOCLIP_CACHE": str(new_cache(own / "cache")),
        **{f"JUPYTER_{kind}_DIR": str(own / kind) for kind in ("CONFIG", "DATA", "RUNTIME")},
        "IPYTHONDIR": str(own / "ipython"),
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(["sh", "-c", trust], cwd=folder, env=environment, check=True)
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    with (own / "log").open("w") as log:
        server = subprocess.Popen(
            [*shlex.split(command), *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        started = time.time()
        while not (about := list((own / "RUNTIME").glob("jpserver-*.json"))):
            assert server.poll() is None and time.time() < started + LONGEST_WAIT, (own / "log").read_text()
            time.sleep(0.1)
        yield Lab(f"127.0.0.1:{json.loads(about[0].read_text())['port']}", folder)
    finally:
        server.terminate()
        server.wait(30)


@dataclass
class Answer:
    """What came back for one request: whether it went well, and every message but the states of the kernel."""

    status: str = ""
    messages: list = field(default_factory=list)

    def of_type(self, *kinds):
        return [message["content"] for message in self.messages if message["msg_type"] in kinds]


class Kernel:
    """A session of a notebook, spoken to as JupyterLab does: one websocket for all channels."""

    def __init__(self, lab, path):
        body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
        self.lab, self.session, self.models = lab, uuid4().hex, {}
        self.id = lab.json("/api/sessions", method="POST", body=body)["kernel"]["id"]
        address = f"ws://{lab.address}/api/kernels/{self.id}/channels?session_id={self.session}&token={TOKEN}"
        self.socket = websocket.create_connection(address, timeout=LONGEST_WAIT)

    def request(self, kind, content):
        """Send a message and return what it brings, until the kernel is idle again."""
        header = {"msg_id": uuid4().hex, "msg_type": kind, "session": self.session, "username": "", "version": "5.3"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self.socket.send(json.dumps(message))
        answer, idle, replied = Answer(), False, kind == "comm_msg"
        while not (idle and replied):
            message = json.loads(self.socket.recv())
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if message["msg_type"] == "status":
                idle = message["content"]["execution_state"] == "idle"
            elif message["msg_type"] in ("execute_reply", "kernel_info_reply"):
                answer.status, replied = message["content"]["status"], True
                answer.messages.append(message)
            else:
                answer.messages.append(message)
        for opened in answer.of_type("comm_open"):
            self.models[opened["comm_id"]] = opened["data"]["state"]
        return answer

    def run(self, code):
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        return self.request("execute_request", content | {"stop_on_error": True})

    def ask(self, question, given=None):
        """Send what the script of an explorer sends, and return what it hears."""
        [model] = [key for key, own in self.models.items() if "_esm" in own]
        data = {"method": "custom", "content": {"id": "1", "question": question, "given": given}}
        answer = self.request("comm_msg", {"comm_id": model, "data": data})
        assert answer.of_type("error") == []
        [told] = [own["data"]["content"] for own in answer.of_type("comm_msg") if own["data"]["method"] == "custom"]
        return told

    def close(self):
        self.socket.close()
        self.lab.ask(f"/api/kernels/{self.id}", method="DELETE")


@dataclass
class Played:
    """A notebook that was run to its end: what each cell gave, the explorer's data, and what it answered."""

    answers: list
    data: dict = field(default_factory=dict)
    told: list = field(default_factory=list)


def renamed(data, **changed):
    words = data["words"]
    return ("words", words | {"names": ["carcinoma", *words["names"][1:]], "place": 0} | changed)


QUESTIONS = {
    "01_data": lambda data: [("rest", None), ("patch", 59)],
    "02_zero_shot": lambda data: [renamed(data), renamed(data, template="a photo")],
}


@pytest.fixture(scope="module")
def kernel(lab):
    kernel = Kernel(lab, "notebooks/01_data.ipynb")
    yield kernel
    kernel.close()


@pytest.fixture(scope="module")
def played(lab, kernel):
    """The first two notebooks, one after the other in one kernel; what the others show asks in the same way."""
    done = {}
    for stem in QUESTIONS:
        path = lab.folder / "notebooks" / f"{stem}.ipynb"
        kernel.models.clear()
        done[stem] = run = Played([])
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code":
                continue
            code = cell.source
            if "parameters" in cell.metadata.get("tags", ()):
                code += "".join(f"\n{key} = {value!r}" for key, value in SMALL.items() if f"{key}:" in code)
            run.answers.append(kernel.run(code))
            if run.answers[-1].status != "ok":
                break
        else:
            run.data = kernel.ask("data")["answer"]
            run.told = [kernel.ask(*question) for question in QUESTIONS[stem](run.data)]
    return done


def test_the_server_serves_the_repository_and_opens_the_first_notebook(lab):
    assert lab.json("/api/status")["kernels"] >= 0
    entries = {entry["name"] for entry in lab.json("/api/contents/")["content"]}
    assert entries >= {"notebooks", "params"}
    page = lab.ask("/lab/tree/notebooks/01_data.ipynb")
    config = json.loads(re.search(r'id="jupyter-config-data" type="application/json">(.*?)</script>', page, re.S)[1])
    extensions = {extension["name"] for extension in config["federated_extensions"]}
    assert extensions >= {"@jupyter-widgets/jupyterlab-manager", "anywidget", "jupyterlab-jupytext"}
    opened = [path.read_text() for path in lab_runtime(lab).glob("*file-to-run*.html")]
    assert len(opened) == 1 and "/lab/tree/notebooks/01_data.ipynb" in opened[0]


def lab_runtime(lab):
    return Path(next(iter(lab.folder.parent.glob("own*")))) / "RUNTIME"


def test_the_lab_asks_for_no_news_trusts_its_notebooks_and_warns_of_no_open_channel(lab, kernel):
    settings = lab.json("/lab/api/settings/@jupyterlab/apputils-extension:notification")["schema"]["properties"]
    assert (settings["fetchNews"]["default"], settings["checkForUpdates"]["default"]) == ("false", False)
    lab.json("/api/contents/notebooks/01_data.ipynb?content=1")
    log = (lab_runtime(lab).parent / "log").read_text()
    assert "Kernel started" in log
    assert "is not trusted" not in log and "without encryption" not in log


def test_the_kernel_is_the_interpreter_of_the_library_and_runs_beside_the_notebook(lab, kernel):
    answer = kernel.run("import os, sys\nprint(sys.prefix, os.getcwd(), sep='|')")
    [printed] = answer.of_type("stream")
    prefix, here = printed["text"].strip().split("|")
    assert Path(prefix).samefile(sys.prefix) and Path(here).samefile(lab.folder / "notebooks")


def test_an_opened_notebook_is_not_marked_as_unsaved(lab, kernel):
    """JupyterLab writes the names and the language of the kernel into what it opens: they are there already."""
    model = lab.json("/api/contents/notebooks/03_train.ipynb?content=1")
    metadata, spec = model["content"]["metadata"], lab.json("/api/kernelspecs")["kernelspecs"]["python3"]
    assert metadata["kernelspec"] == {"name": "python3"} | {
        key: spec["spec"][key] for key in ("display_name", "language")
    }
    [told] = kernel.request("kernel_info_request", {}).of_type("kernel_info_reply")
    assert metadata["language_info"] == told["language_info"]
    before = (lab.folder / "notebooks" / "03_train.ipynb").read_bytes()
    lab.ask("/api/contents/notebooks/03_train.ipynb", method="PUT", body={**model, "type": "notebook"})
    assert (lab.folder / "notebooks" / "03_train.ipynb").read_bytes() == before


def test_what_is_saved_is_saved_in_both_files_of_the_pair(lab):
    model = lab.json("/api/contents/notebooks/01_data.ipynb?content=1")
    model["content"]["cells"].append(nbformat.v4.new_markdown_cell("A line from JupyterLab."))
    lab.ask("/api/contents/notebooks/01_data.ipynb", method="PUT", body={**model, "type": "notebook"})
    assert "# A line from JupyterLab." in (lab.folder / "notebooks" / "01_data.py").read_text()


@pytest.mark.parametrize("stem", QUESTIONS)
def test_a_notebook_runs_from_top_to_bottom(lab, played, stem):
    errors = [(error["ename"], error["evalue"]) for answer in played[stem].answers for error in answer.of_type("error")]
    assert errors == []
    assert {answer.status for answer in played[stem].answers} == {"ok"}
    shown = [content for answer in played[stem].answers for content in answer.of_type("display_data", "execute_result")]
    assert len(shown) >= 1


def test_a_run_in_the_lab_is_found_in_the_repository_s_reports(lab, played):
    assert (lab.folder / "reports" / "lab" / "class_matrix.npy").is_file()
    assert not (lab.folder / "notebooks" / "reports").exists()


@pytest.mark.parametrize("stem", QUESTIONS)
def test_an_explorer_is_shown_with_its_figure_and_keeps_its_data_once(played, stem):
    answers = [content for answer in played[stem].answers for content in answer.of_type("execute_result")]
    [shown] = [content for content in answers if WIDGET in content["data"]]
    opened = [content for answer in played[stem].answers for content in answer.of_type("comm_open")]
    assert shown["data"][WIDGET]["model_id"] in {content["comm_id"] for content in opened}
    assert set(shown["data"]) & {"image/png", "image/jpeg"}
    assert (EXPLORER_TYPE in shown["data"]) == (stem != "02_zero_shot")
    states = [content["data"]["state"] for content in opened]
    assert len(json.dumps([{k: v for k, v in own.items() if k not in ("_esm", "_css")} for own in states])) < 10_000


def test_the_kernel_gives_every_patch_to_the_viewer(played):
    rest, patch = (told["answer"] for told in played["01_data"].told)
    data = played["01_data"].data
    assert sorted(own["i"] for own in [*data["patches"], *rest]) == list(range(60))
    assert patch["image"].startswith("data:image/webp") and len(patch["areas"]) == len(data["classes"])


def test_other_words_are_scored_by_the_kernel(played):
    changed, refused = played["02_zero_shot"].told
    assert changed["answer"]["cosines"][0][1] == "carcinoma"
    assert "Power-set" in [line[0] for line in changed["answer"]["methods"]]
    assert "each template needs one {}" in refused["error"]
