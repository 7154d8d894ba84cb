"""House rules that no single room can keep: where tests stand, what files may say, what every proof must admit."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mainspring"
TESTS = ROOT / "tests"
MAX_LINES = 700

WITHOUT_TESTS: dict[str, str] = {}
"""Packages without a directory of tests, and why. This list only shrinks."""

NOT_SEEN_RED: dict[str, str] = {
    "test_a01_static_files_are_open_and_nothing_beside_them": "further cases of A01",
    "test_a01_the_allow_list_is_frozen": "compares with a list kept in the test",
    "test_d02_good_requests_pass_meanwhile": "the other side of D02: what must pass",
    "test_d05_pages_are_bounded": "further cases of D05",
    "test_p01_a_good_path_goes_all_the_way": "the other side of P01: what must pass",
    "test_p01_every_text_of_every_read": "reads bind names as values of SQL: there is no check to remove",
    "test_p01_the_address_itself": "only declared addresses are routed: there is no check to remove",
    "test_X02_a_narrower_policy_refuses_what_the_default_allows": "the same defence as X02 above it, the other way round",
    "test_X03_the_declared_format_must_match_the_bytes": "two defences, one behind the other; see mainspring.testing.formats",
    "test_X04_an_ort_flatbuffer_is_refused": "the runtime behind our walk refuses it as well",
    "test_X04_damaged_onnx_is_an_error_never_a_crash": "a search for a crash: there is no single defence to remove",
    "test_a06_the_token_is_random_private_and_stable": "states a property",
    "test_b01_a_missing_or_doubled_host_is_refused_and_a_forwarded_one_ignored": "further cases of B01",
    "test_b01_a_forwarded_host_changes_nothing": "further cases of B01",
    "test_b01_own_hosts_pass_whatever_the_port": "the other side of B01: what must pass",
    "test_b02_own_pages_and_tools_may_post": "the other side of B02: what must pass",
    "test_b06_the_session_cookie_is_for_this_site_only": "new, and not tried with the attribute removed",
    "test_b03_other_methods_are_refused_and_no_origin_is_ever_allowed": "nothing is there that could be removed: CORS is absent",
    "test_d02_a_body_shorter_than_declared_holds_nobody_up": "further cases of D02",
    "test_d02_headers_that_lie_or_do_not_fit": "further cases of D02",
    "test_d02_tiny_chunks_are_one_body": "the other side of D02: what must pass",
    "test_d04_a_request_line_too_long_is_431": "the defence is the HTTP parser's own",
    "test_m02_any_sequence_of_batches_counts_each_content_once": "a property; M02 beside it was seen red",
    "test_m05_no_data_makes_a_check_raise": "a search: there is no single defence to remove",
    "test_m05_ten_thousand_columns": "measures false discoveries",
    "test_m06_single_class_has_no_auc_and_says_so": "further cases of M06",
    "test_m10_a_known_shift_is_found_soon": "measures power",
    "test_m10_ten_thousand_no_drift_windows": "the soak variant of M10",
    "test_m11_a_record_sent_twice_counts_once": "further cases of M11",
    "test_o01_failpoints_of_this_room_are_all_proven": "counts failpoints",
    "test_o05_fsck_without_data_says_what_dangles": "further cases of O05",
    "test_o05_subsets_together_read_everything": "states a property",
    "test_p04_a_checkout_writes_only_below_its_target": "the defence is proven in tests/abuse/test_p_objects.py",
    "test_p04_a_link_planted_while_we_write": "two defences, openat2 and the walk",
    "test_p04_directories_and_pipes_are_not_replaced": "further cases of P04",
    "test_p04_openat2_is_really_used_here": "says which of two defences this machine uses",
    "test_r01_soak": "the soak variant of R01",
    "test_t01_200_kills_of_8_writers": "the soak variant of T01",
    "test_t07_commands_work_beside_the_server": "the other side of T07: what must work",
    "test_t12_a_killed_run_shows_as_crashed_and_its_data_arrives": "the same spool as T01",
}
"""Fault and abuse tests that were not seen red, and why. This list only shrinks."""


def tracked(*patterns: str) -> list[Path]:
    """Files that Git tracks or would track; in an archive without Git, all that are there."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [ROOT / line for line in done.stdout.splitlines()] if done.returncode == 0 else ROOT.rglob("*.py")
    return sorted(path for path in found if path.is_file())


def packages() -> list[str]:
    return sorted(
        p.parent.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("__init__.py") if p.parent != SOURCE
    )


def test_every_package_has_a_directory_of_tests() -> None:
    def tested(package: str) -> bool:
        # A package inside a room may be tested by a module of the room's directory: test_<package>.py
        place = TESTS / package
        return any(place.rglob("test_*.py")) or (place.parent / f"test_{place.name}.py").exists()

    inner = {
        "storage/sql": TESTS / "storage" / "test_store.py",
        "storage/sql/migrations": TESTS / "storage" / "test_store.py",
    }
    missing = {p for p in packages() if not tested(p) and not (p in inner and inner[p].exists())}
    assert missing <= set(WITHOUT_TESTS), f"no tests: {sorted(missing - set(WITHOUT_TESTS))}"
    gone = {p for p in WITHOUT_TESTS if p not in missing}
    assert not gone, f"take off the list: {sorted(gone)}"


def test_every_room_has_a_page() -> None:
    inner = {"records", "storage", "testing", "demo", "cli"}  # storage: one page each for its parts
    rooms = {p for p in packages() if "/" not in p} - inner
    pages = {p.stem for p in (ROOT / "docs" / "rooms").glob("*.md")}
    assert not rooms - pages, f"docs/rooms lacks {sorted(rooms - pages)}"
    assert {"storage", "objects", "journal"} <= pages


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in tracked("docs/*.md", "docs/**/*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, f"docs/README.md does not name {name}"


def test_no_module_is_too_long() -> None:
    long = {
        p.relative_to(ROOT).as_posix(): n
        for p in SOURCE.rglob("*.py")
        if (n := len(p.read_text().splitlines())) > MAX_LINES
    }
    assert not long


FORBIDDEN = [
    re.compile(p)
    for p in (
        r"(?<![\w/.>])/" + "work/",
        r"\.\./" + "shared",
        "/home/" + r"(?!me/)[a-z]+/",
        "py" + r"pi\.org",
        "files\\.python" + "hosted",
    )
]


def test_no_file_names_a_machine_or_an_index() -> None:
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for pattern in FORBIDDEN:
            found = pattern.search(text)
            assert found is None, f"{path.relative_to(ROOT)} says {found[0]!r}"


def test_the_lock_holds_no_address_and_every_hash() -> None:
    lock = (ROOT / "requirements" / "all.txt").read_text()
    assert "://" not in lock
    names = re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,0-9]+\])?==", lock, re.MULTILINE | re.IGNORECASE)
    assert len(names) > 50
    assert lock.count("--hash=sha256:") >= len(names)


def proofs() -> Iterator[tuple[str, ast.FunctionDef]]:
    name = re.compile(r"test_[topxabdrm]\d\d_", re.IGNORECASE)
    for path in [*TESTS.rglob("test_*.py"), *(SOURCE / "testing").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            soak = isinstance(node, ast.FunctionDef) and any(
                "soak" in ast.unparse(d) for d in node.decorator_list
            )
            if (
                isinstance(node, ast.FunctionDef)
                and name.match(node.name)
                and (not soak or node.name in NOT_SEEN_RED)
            ):
                yield path.relative_to(ROOT).as_posix(), node


def test_every_proof_was_seen_red_or_says_why_not() -> None:
    found, silent = set(), set()
    for place, node in proofs():
        found.add(node.name)
        if not re.search(r"seen red", ast.get_docstring(node) or "", re.IGNORECASE):
            silent.add(node.name)
            assert node.name in NOT_SEEN_RED, f"{place}: {node.name} does not say that it was seen red"
    assert len(found) > 60
    assert not set(NOT_SEEN_RED) - silent, f"take off the list: {sorted(set(NOT_SEEN_RED) - silent)}"


def test_types_and_contracts_cover_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["mypy"]["strict"] is True
    assert settings["mypy"]["files"] == ["src/mainspring"]
    assert settings["mypy"].get("exclude", []) == ["src/mainspring/templates/"]
    assert not [o for o in settings["mypy"].get("overrides", []) if o.get("ignore_errors")]
    layers = next(c for c in settings["importlinter"]["contracts"] if c["type"] == "layers")["layers"]
    known = {name.strip(" ()") for layer in layers for name in re.split(r"[|:]", layer)}
    leaves = {
        "serving",
        "testing",
        "templates",
    }  # serving is a leaf with a contract of its own; the others import anything
    missing = {f"mainspring.{p}" for p in packages() if "/" not in p and p not in leaves} - known
    assert not missing, f"no layer for {sorted(missing)}"


def test_make_check_runs_lint_types_and_contracts() -> None:
    rules = (ROOT / "Makefile").read_text()
    assert re.search(r"^check: lint types contracts$", rules, re.MULTILINE)
    assert re.search(r"^test: check$", rules, re.MULTILINE)
    assert "lint-imports" in rules
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def with_examples() -> list[str]:
    return sorted(
        ".".join(("mainspring", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in SOURCE.rglob("*.py")
        if "templates" not in path.parts and re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize("module", with_examples())
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
