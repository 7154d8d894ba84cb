"""Pages of several projects of one server: each page, form and command acts on the project that its address names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import numpy as np
import pyarrow as pa
import pytest

from mainspring.config import load
from mainspring.operations import Principal, Role
from mainspring.records.models import Column, Signature, Task
from mainspring.server.hosted import Hosted
from mainspring.testing.server import Running, running_server
from mainspring.workspace import Workspace

SIGNATURE = Signature(inputs=[Column(name="x", type="float64")], task=Task.BINARY, classes=["no", "yes"])
TWO = "/projects/two"
PEOPLE = [
    Principal("both", {"one": Role.EDITOR, "two": Role.OPERATOR}),
    Principal("only", {"two": Role.VIEWER}),
    Principal("none", {"unmade": Role.ADMIN}),
    Principal("all", {"*": Role.ADMIN}),
]


@dataclass
class Site:
    running: Running
    workspace: Workspace
    pages: dict[str, list[str]]

    @contextlib.contextmanager
    def as_(self, name: str) -> Iterator[httpx2.Client]:
        with httpx2.Client(
            base_url=self.running.url, headers={"accept": "text/html"}, trust_env=False, timeout=120
        ) as browser:
            answer = browser.post("/login", data={"token": self.running.tokens[name]})
            assert answer.status_code == 303, answer.text
            yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    for name in ("one", "two"):
        (root / name).mkdir()
        (root / name / "mainspring.toml").write_text(f'[project]\nname = "{name}"\n')
    with (root / "one" / "mainspring.toml").open("a") as file:
        file.write('[server]\nprojects = ["../two"]\n')
    with (
        Workspace(load(root / "one")) as workspace,
        running_server(workspace, principals=PEOPLE) as running,
    ):
        hosted = Hosted(workspace, [])
        pages = {name: fill(hosted.workspace(name), name) for name in ("one", "two")}
        yield Site(running, workspace, pages)


def fill(workspace: Workspace, name: str) -> list[str]:
    """The same names in both projects; every text says whose it is. Returns the addresses of the pages."""
    from sklearn.linear_model import LogisticRegression

    x = np.linspace(-1, 1, 60).reshape(-1, 1)
    fitted = LogisticRegression(C=len(name)).fit(x, (x[:, 0] > 0).astype(int))
    data = workspace.data.commit("flats", pa.table({"size": [1, 2, 3]}), message=f"of-{name}")
    run = workspace.tracking.operations.create_run(experiment="tries", name=f"of-{name}")
    workspace.tracking.operations.finish_run(run=run.id)
    workspace.models.save_and_register(
        fitted, model="buy", signature=SIGNATURE, sample={"x": x[:, 0].tolist()}, dataset_version=data.id
    )
    workspace.models.set_alias(model="buy", alias="champion", version=1, reason=f"of-{name}")
    return [
        "/", "/models", "/models/buy", "/models/buy/versions/1", "/deployments", "/runs", f"/runs/{run.id}", "/pipelines", "/data",
        "/data/flats", "/data/flats/1", f"/versions/{data.id}", "/timeline", "/lineage", f"/lineage?ref=run:{run.id}",
    ]  # fmt: skip


def addresses(page: str) -> set[str]:
    """Where links and forms of a page lead, but for the choice of the project and what belongs to none."""
    found = re.findall(r'(?<!data-whole )(?:href|action)="(/[^"]*)"', page)
    return {a for a in found if not a.startswith(("/static/", "/login", "/logout"))}


def test_every_link_form_and_command_stays_in_its_project(site: Site) -> None:
    """Seen red with the pages of another project shown as they are written: links led into the server's own project."""
    seen = 0
    with site.as_("both") as browser:
        for page in site.pages["two"]:
            answer = browser.get(TWO + page)
            assert answer.status_code == 200, (page, answer.text)
            assert "of-one" not in answer.text, page
            led = addresses(answer.text)
            assert led, page
            assert {a for a in led if not a.startswith((f"{TWO}/", "/api/v1/two/"))} == set(), page
            for command in re.findall(r'(?:<code>|data-copy=")mainspring ([^<"]*)', answer.text):
                assert command.startswith("--project two "), (page, command)
            seen += len(led)
            for target in sorted(led)[:8]:
                if "?" not in target and "/api/" not in target:
                    assert browser.get(target.replace("&amp;", "&")).status_code in {200, 405}, target
        for page in site.pages["one"]:
            answer = browser.get(page)
            assert answer.status_code == 200, page
            assert "of-two" not in answer.text, page
            assert not [a for a in addresses(answer.text) if a.startswith("/projects/")], page
            assert "--project" not in answer.text
    assert seen > 100


def test_a_form_acts_on_the_project_of_its_page(site: Site) -> None:
    """Seen red with actions given the server's own project, whatever the address says."""
    path = "/models/buy/versions/1/approve"
    with site.as_("both") as browser:
        (action,) = re.findall(r'action="([^"]+/approve)"', browser.get(f"{TWO}/models/buy/versions/1").text)
        assert action == TWO + path
        answer = browser.post(action, data={"reason": "for two", "approved": "yes"})
        assert (answer.status_code, answer.headers["location"]) == (303, f"{TWO}/models/buy/versions/1")
        assert "for two" in browser.get(f"{TWO}/timeline").text
        assert "for two" not in browser.get("/timeline").text
        # An editor of the one project is no operator there, and sees no form that would be refused.
        assert "/approve" not in browser.get("/models/buy/versions/1").text
        assert browser.post(path, data={"reason": "r", "approved": "yes"}).status_code == 403


def test_the_choice_of_projects_is_that_of_the_reader(site: Site) -> None:
    with site.as_("both") as browser:
        page = browser.get("/").text
        chosen = re.findall(r'<a data-whole href="([^"]+)"( aria-current="true")?>([^<]+)</a>', page)
        assert chosen == [("/", ' aria-current="true"', "one"), (f"{TWO}/", "", "two")]
        assert browser.get(TWO).status_code == 200
    with site.as_("only") as browser:
        start = browser.get("/")
        assert (start.status_code, start.headers["location"]) == (303, f"{TWO}/")
        page = browser.get(f"{TWO}/")
        assert page.status_code == 200
        assert "data-whole" not in page.text, "there is nothing to choose"


@pytest.mark.parametrize("who", ["only", "none"])
def test_a03_a_page_of_others_is_one_that_is_not_there(site: Site, who: str) -> None:
    """A03. Seen red with the server's own project given to whoever asks: its name stood in the error."""
    with site.as_(who) as browser:
        for page in [*site.pages["one"][1:], "/nowhere"]:
            answer = browser.get(page)
            assert answer.status_code == 404, page
            assert re.search(r">\s*one\s*<", answer.text) is None, page
            assert "of-one" not in answer.text
            assert "<nav" not in answer.text
            assert not addresses(answer.text) - {"/"}, "no link into a project that is not theirs"
        told = [browser.get(f"/projects/{p}/models") for p in ("one", "nobody")]
        assert [t.status_code for t in told] == [404, 404]
        pages = [re.sub(r"\d{4}-\d\d-\d\d[^<\"]*", "", t.text) for t in told]
        assert pages[0].replace("one", "nobody") == pages[1].replace("one", "nobody")
        assert (
            browser.post("/projects/one/models/buy/versions/1/approve", data={"reason": "r"}).status_code
            == 404
        )


def test_a_project_without_a_policy_here_can_be_read(site: Site) -> None:
    """Seen red while these pages asked for the policy: 409 for each of them."""
    site.workspace.projects.create_project(name="three")
    other = Hosted(site.workspace, []).workspace("three")
    fill(other, "three")
    other.deploy.deploy(deployment="buy", model="buy", version=1, reason="of-three")
    with site.as_("all") as browser:
        for page in (
            "/",
            "/deployments",
            "/deployments/buy",
            "/deployments/buy/monitoring",
        ):
            answer = browser.get(f"/projects/three{page}")
            assert answer.status_code == 200, (page, answer.text[:500])
        assert "no policy of this project" in browser.get("/projects/three/deployments/buy/monitoring").text
